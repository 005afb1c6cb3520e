-- KEYS: state   ARGV: control, isolations, which are in the same slot and are not KEYS for the reason that reserve.lua gives.
-- Returns the epoch, and who is isolated in it: subject, what was said of it, and so on.
local control = redis.call('GET', ARGV[1])
return {control and struct.unpack('<d', control) or 0, redis.call('HGETALL', ARGV[2])}
