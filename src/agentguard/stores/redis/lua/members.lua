-- KEYS: members, when they were heard of   ARGV: microseconds after which one is forgotten
-- Returns the members and when each was heard of.
local heard = redis.call('ZRANGEBYSCORE', KEYS[2], string.format('%.0f', micros() - ARGV[1]), '+inf', 'WITHSCORES')
local members = {}
for place = 1, #heard, 2 do
  local member = redis.call('HGET', KEYS[1], heard[place])
  if member then
    members[#members + 1] = {member, tonumber(heard[place + 1])}
  end
end
return members
