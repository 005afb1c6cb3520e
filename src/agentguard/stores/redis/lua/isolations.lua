-- KEYS: isolations.   Returns subject, by, why and the time of each.
local all = redis.call('HGETALL', KEYS[1])
local isolations = {}
for place = 1, #all, 2 do
  local isolation = cmsgpack.unpack(all[place + 1])
  isolations[#isolations + 1] = {all[place], isolation[1], isolation[2], isolation[3]}
end
return isolations
