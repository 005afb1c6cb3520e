-- KEYS: limits, rows ...   ARGV: idle since (empty: whether or not), names ...
local forgotten = 0
for place = 2, #KEYS do
  local raw = ARGV[1] ~= '' and redis.call('GET', KEYS[place])
  if not raw or struct.unpack('<d', raw, 9) < tonumber(ARGV[1]) then
    redis.call('DEL', KEYS[place])
    redis.call('HDEL', KEYS[1], ARGV[place])
    forgotten = forgotten + 1
  end
end
return forgotten
