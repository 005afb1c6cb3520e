-- KEYS: control, isolations   ARGV: on, subject, by, why, channel.   Returns the epoch.
-- Control is: the epoch, and how many are isolated.
local control = redis.call('GET', KEYS[1])
local epoch = control and struct.unpack('<d', control) or 0
if ARGV[1] == '1' then
  redis.call('HSET', KEYS[2], ARGV[2], cjson.encode({ARGV[3], ARGV[4], string.format('%.0f', micros())}))
else
  redis.call('HDEL', KEYS[2], ARGV[2])
end
epoch = epoch + 1
redis.call('SET', KEYS[1], struct.pack('<dd', epoch, redis.call('HLEN', KEYS[2])))
redis.call('PUBLISH', ARGV[5], string.format('%.0f', epoch))
return epoch
