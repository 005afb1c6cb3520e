-- KEYS: control, isolations   ARGV: on, subject, by, why, channel.   Returns the epoch.
-- Control is: the epoch, and how many are isolated. What is published says who was isolated, for those who listen to act on
-- before they have read it.
local control = redis.call('GET', KEYS[1])
local epoch = (control and struct.unpack('<d', control) or 0) + 1
local said = {string.format('%.0f', epoch)}
if ARGV[1] == '1' then
  local at = string.format('%.0f', micros())
  redis.call('HSET', KEYS[2], ARGV[2], cjson.encode({ARGV[3], ARGV[4], at}))
  said = {said[1], ARGV[2], ARGV[3], ARGV[4], at}
else
  redis.call('HDEL', KEYS[2], ARGV[2])
end
redis.call('SET', KEYS[1], struct.pack('<dd', epoch, redis.call('HLEN', KEYS[2])))
redis.call('PUBLISH', ARGV[5], cjson.encode(said))
return epoch
