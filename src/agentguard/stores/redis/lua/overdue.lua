-- KEYS: open, the host's holders.   ARGV: how many.   Returns the ids whose deadline is over, and the holders of the host.
local time = string.format('(%.0f', micros())
return {redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', time, 'LIMIT', 0, ARGV[1]), redis.call('SMEMBERS', KEYS[2])}
