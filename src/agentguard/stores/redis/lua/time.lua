-- Microseconds since 1970 by the server's clock, the only one that all processes share.
local function micros()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
