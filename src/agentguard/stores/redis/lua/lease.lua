-- The account of a slice: spends what was used of it, keeps what is kept, and lets it grow.
--
-- KEYS: state, open, hold, rows ...   ARGV: generation, id, holder, microseconds to hold, channel, tokens, nano-USD and calls used,
-- calls to grow by, share; for each row what is kept of it (empty: nothing), and what one call charges (empty: nothing)
-- Returns {'accounted', time, calls, crossed}; {'refused', refused}; {'closed'}; {'keys', keys ...}; {'lost'}.
local found = redis.call('MGET', unpack(KEYS))
if is_lost(found[1], ARGV[1]) then
  return {'lost'}
end
local time = micros()
local now = time / 1000000
local _, learning = struct.unpack('<dd', found[1], 17)
local used_in = {[0] = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), 0}
local calls, share = tonumber(ARGV[9]), tonumber(ARGV[10])
local rows, keep, charged = {}, {}, {}
local is_kept = false
for place = 4, #KEYS do
  local key, raw = KEYS[place], found[place]
  local kept, part = ARGV[3 + 2 * place], ARGV[4 + 2 * place]
  rows[key] = raw and unpack_row(key, raw)
  keep[key] = tonumber(kept) or 0
  is_kept = is_kept or kept ~= ''
  if part ~= '' then
    charged[#charged + 1] = {key = key, amount = tonumber(part)}
  end
end
if not found[3] and (is_kept or used_in[0] ~= 0 or used_in[1] ~= 0 or used_in[2] ~= 0) then
  return {'closed'}
end
for _, part in ipairs(charged) do
  if not rows[part.key] then
    return {'refused', unknown(part.key)}
  end
end

local items, unspent = {}, {}
if found[3] then
  local _, _, held = unpack_hold(found[3])
  for _, item in ipairs(held) do
    local row = rows[item.key]
    if row == nil then
      local keys = {'keys'}
      for place, each in ipairs(held) do
        keys[place + 1] = each.key
      end
      return keys
    end
    if row and row.id == item.id then
      unspent[item.key] = used_in[row.unit]
      items[#items + 1] = item
    end
  end
end
local crossed = {}
local is_over = false
for _, item in ipairs(items) do
  local row = rows[item.key]
  local spent, rest = unspent[item.key], keep[item.key]
  if item.continued == 1 then
    spent = math.min(spent, item.held)
    rest = math.min(rest, item.held - spent)
  end
  unspent[item.key] = unspent[item.key] - spent
  keep[item.key] = keep[item.key] - rest
  add(row, spent, rest - item.held, item.start)
  item.held = rest
  tell(row, crossed)
end
for _, part in ipairs(charged) do
  local row = rows[part.key]
  advance(row, now)
  if part.amount > 0 then
    calls = math.min(calls, math.floor(math.max(row.amount - row.held - row.spent, 0) / (share * part.amount)))
  end
end
for _, item in ipairs(items) do
  is_over = is_over or rows[item.key].start ~= item.start
end
if is_over or time < learning then
  calls = 0
end
if calls > 0 then
  for _, part in ipairs(charged) do
    local row, more = rows[part.key], part.amount * calls
    add(row, 0, more, row.start)
    hold_more(items, row, more)
  end
end

local writes = {}
for key, row in pairs(rows) do
  if row then
    row.used_at = now
    writes[#writes + 1] = key
    writes[#writes + 1] = pack_row(row)
  end
end
if is_kept or calls > 0 then
  writes[#writes + 1] = KEYS[3]
  writes[#writes + 1] = pack_hold(ARGV[3], '', pack_items(items))
  redis.call('ZADD', KEYS[2], string.format('%.0f', time + ARGV[4]), ARGV[2])
else
  redis.call('DEL', KEYS[3])
  redis.call('ZREM', KEYS[2], ARGV[2])
end
if #writes > 0 then
  redis.call('MSET', unpack(writes))
end
redis.call('PUBLISH', ARGV[5], '')
return {'accounted', time, calls, crossed}
