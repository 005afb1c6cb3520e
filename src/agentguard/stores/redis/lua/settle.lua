-- KEYS: state, open, hold, rows ...   ARGV: generation, id, channel, how, tokens, nano-USD, calls (of a slice)
-- how: 'used', by what was used. 'overdue' and 'dead': what was held is spent, when the deadline is over, or at once.
-- Returns the time when there is nothing else to say; {'settled', time, crossed}; {'closed'} when the id is not open or not due;
-- {'keys', keys ...} when it holds rows that were not named; {'lost'}.
local found = redis.call('MGET', unpack(KEYS))
if is_lost(found[1], ARGV[1]) then
  return {'lost'}
end
if not found[3] then
  redis.call('ZREM', KEYS[2], ARGV[2])  -- a server that is short of memory may have dropped the hold
  return {'closed'}
end
local time = micros()
local now = time / 1000000
local is_used = ARGV[4] == 'used'
if ARGV[4] == 'overdue' and time <= tonumber(redis.call('ZSCORE', KEYS[2], ARGV[2]) or 0) then
  return {'closed'}
end
local _, _, items = unpack_hold(found[3])
local raws = {}
for place = 4, #KEYS do
  raws[KEYS[place]] = found[place]
end
for _, item in ipairs(items) do
  if raws[item.key] == nil then
    local keys = {'keys'}
    for place, each in ipairs(items) do
      keys[place + 1] = each.key
    end
    return keys
  end
end

local used_in = {[0] = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), 0}
local rows, placed, crossed, writes, done = {}, {}, {}, {}, {}
local parts = {}
for _, item in ipairs(items) do
  parts[item.key] = (parts[item.key] or 0) + 1
end

-- The usual case, without unpacking: one part of a row, used in the window in which it was taken, and no soft step is passed.
local function write_usual(item, raw)
  local held, _, spent, _, ends, start, code, id, warn_next = struct.unpack('<ddddddddd', raw)
  local used = used_in[code % 10]
  if id ~= item.id or now >= ends or start ~= item.start or code >= 10 * ROLLING or spent + used >= warn_next then
    return false
  end
  writes[#writes + 1] = item.key
  writes[#writes + 1] = struct.pack('<ddd', held - item.held, now, spent + used) .. string.sub(raw, 25)
  return true
end

for _, item in ipairs(items) do
  local raw = raws[item.key]
  done[item] = is_used and raw and parts[item.key] == 1 and item.continued == 0 and write_usual(item, raw)
end
for _, item in ipairs(items) do
  local row = rows[item.key]
  if row == nil and not done[item] then
    local raw = raws[item.key]
    row = raw and unpack_row(item.key, raw)
    rows[item.key] = row
  end
  if row and row.id == item.id then
    if is_used then
      advance(row, now)
      local used = used_in[row.unit]
      local before = placed[item.key]
      if before then
        used = math.max(used - before, 0)
      end
      if item.continued == 1 then
        used = math.min(used, item.held)
        placed[item.key] = (before or 0) + used
      end
      add(row, used, -item.held, item.start)
      tell(row, crossed)
    else
      add(row, row.unit == AT_ONCE and 0 or item.held, -item.held, item.start)
    end
    row.used_at = now
  end
end
for key, row in pairs(rows) do
  if row then
    writes[#writes + 1] = key
    writes[#writes + 1] = pack_row(row)
  end
end
if #writes > 0 then
  redis.call('MSET', unpack(writes))
end
redis.call('DEL', KEYS[3])
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('PUBLISH', ARGV[3], '')
if #crossed == 0 then
  return time
end
return {'settled', time, crossed}
