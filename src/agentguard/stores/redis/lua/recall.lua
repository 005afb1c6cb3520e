-- Says to all who hold slices that rows are wanted, unless it has just been said: whoever hears it gives account.
--
-- KEYS: what was said   ARGV: channel, rows
-- Returns how many heard it; -1 when it has just been said.
if not redis.call('SET', KEYS[1], '', 'NX', 'PX', 20) then
  return -1
end
local heard = redis.call('PUBLISH', ARGV[1], ARGV[2])
if heard > 100 then -- at most five thousand hear something in a second, however many wait
  redis.call('SET', KEYS[1], '', 'PX', math.ceil(heard / 5))
end
return heard
