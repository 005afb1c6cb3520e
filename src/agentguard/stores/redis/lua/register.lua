-- KEYS: state, limits, ids, channel's holders, rows ...   ARGV: known generation, a new one, holder, channel, then for each row:
-- name, specification, row
-- Returns {generation, time}; {'lost'} when this process knows another generation.
local state = redis.call('GET', KEYS[1])
if ARGV[1] ~= '' and is_lost(state, ARGV[1]) then
  return {'lost'}
end
local time = micros()
local now = time / 1000000
if not state then
  state = ARGV[2] .. struct.pack('<dd', time, 0)
  redis.call('SET', KEYS[1], state)
end
redis.call('SADD', KEYS[4], ARGV[3])
local has_changed = false
for place = 5, #KEYS do
  local at = 5 + 3 * (place - 5)
  local name, specification, written = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local raw = redis.call('GET', KEYS[place])
  if not raw then
    local row = unpack_row(KEYS[place], written)
    row.id = redis.call('INCR', KEYS[3])
    row.used_at = now
    redis.call('SET', KEYS[place], pack_row(row))
    redis.call('HSET', KEYS[2], name, specification)
  elseif redis.call('HGET', KEYS[2], name) ~= specification then
    local row, wanted = unpack_row(KEYS[place], raw), unpack_row(KEYS[place], written)
    row.amount, row.steps, row.used_at = wanted.amount, wanted.steps, now
    forget_steps_not_passed(row)
    redis.call('SET', KEYS[place], pack_row(row))
    redis.call('HSET', KEYS[2], name, specification)
    has_changed = true
  end
end
if has_changed then
  redis.call('PUBLISH', ARGV[4], '')
end
return {string.sub(state, 1, 16), time}
