-- KEYS: open   ARGV: microseconds to hold, number of ids, ids ...   Moves on the deadlines of those that are open.
local deadline = string.format('%.0f', micros() + ARGV[1])
for place = 3, 2 + tonumber(ARGV[2]) do
  redis.call('ZADD', KEYS[1], 'XX', deadline, ARGV[place])
end
return 0
