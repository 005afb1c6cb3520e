-- KEYS: state, open, hold, rows ...   ARGV: generation, id, holder, microseconds to hold, force, control, isolated, amounts ...,
-- subjects ...
-- Control and isolated are keys too, in the same slot. They are not among KEYS because those need the right to write, which a
-- process has not that is not an operator's.
-- Returns the time when all was taken and there is nothing else to say; {'granted', time, crossed, refused};
-- {'refused', refused}; {'lost'} when this process knows another generation.
local found = redis.call('MGET', ARGV[6], unpack(KEYS))
local control, state, hold = found[1], found[2], found[4]
if is_lost(state, ARGV[1]) then
  return {'lost'}
end
if hold then
  local _, answer = struct.unpack('<I4c0I4c0', hold)
  return answer == '' and 0 or cmsgpack.unpack(answer)
end
local count = #KEYS - 3
if control and struct.unpack('<d', control, 9) > 0 then
  for place = 8 + count, #ARGV do
    if redis.call('HEXISTS', ARGV[7], ARGV[place]) == 1 then
      return {'refused', {'isolated', ARGV[place], 0, 0, 0, 0, ''}}
    end
  end
end
local time = micros()
local now = time / 1000000
local force = ARGV[5] == '1'
if count > 0 then
  local learning = struct.unpack('<d', state, 25)
  if time < learning then
    return {'refused', {'unregistered', KEYS[4], 0, 0, 0, 0, string.format('%.17g', learning / 1000000)}}
  end
end

local rows, moved = {}, {}
local exhausted, contended, missing
for place = 1, count do
  local raw = found[place + 4]
  if not raw then
    missing = place
    break
  end
  local asked = tonumber(ARGV[place + 7])
  local held, _, spent, amount, ends = struct.unpack('<ddddd', raw)
  if now >= ends then
    local row = unpack_row(KEYS[place + 3], raw)
    advance(row, now)
    rows[place] = row
    moved[#moved + 1] = place
    held, spent = row.held, row.spent
  end
  if held + spent + asked > amount then
    if spent + asked > amount then
      exhausted = exhausted or place
    else
      contended = contended or place
    end
  end
end

local writes = {}
local refused
local first = missing or exhausted or contended
if first then
  if missing then
    refused = unknown(KEYS[missing + 3])
  else
    local row = rows[first] or unpack_row(KEYS[first + 3], found[first + 4])
    refused = refusal(exhausted and 'exhausted' or 'contended', row, tonumber(ARGV[first + 7]))
  end
  if missing or not force then
    for _, place in ipairs(moved) do  -- a window never moves back, not even when the clock does so after a refusal
      writes[#writes + 1] = KEYS[place + 3]
      writes[#writes + 1] = pack_row(rows[place])
    end
    if #writes > 0 then
      redis.call('MSET', unpack(writes))
    end
    return {'refused', refused}
  end
end

local crossed, items = {}, {}
for place = 1, count do
  local key, raw, row = KEYS[place + 3], found[place + 4], rows[place]
  local asked = tonumber(ARGV[place + 7])
  local held, _, _, _, _, start, code, id = struct.unpack('<dddddddd', raw)
  local unit = code % 10
  writes[#writes + 1] = key
  if not row and unit ~= CALLS and code < 10 * ROLLING then
    writes[#writes + 1] = struct.pack('<dd', held + asked, now) .. string.sub(raw, 17)
  else
    row = row or unpack_row(key, raw)
    start = row.start
    row.used_at = now
    take(row, asked, crossed)
    writes[#writes + 1] = pack_row(row)
  end
  if unit ~= CALLS then
    items[#items + 1] = pack_item(key, id, start, asked, 0)
  end
end
local answer = time
local written = ''
if refused or #crossed > 0 then
  answer = {'granted', time, crossed, refused or {}}
  written = cmsgpack.pack(answer)
end
writes[#writes + 1] = KEYS[3]
writes[#writes + 1] = pack_hold(ARGV[3], written, table.concat(items))
redis.call('MSET', unpack(writes))
redis.call('ZADD', KEYS[2], string.format('%.0f', time + ARGV[4]), ARGV[2])
return answer
