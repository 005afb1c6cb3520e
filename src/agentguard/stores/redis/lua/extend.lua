-- KEYS: state, hold, rows ...   ARGV: generation, id, amounts ...
-- Returns {'granted', time, crossed, amounts}; {'refused', refused}; {'closed'} when the id is not open; {'lost'}.

-- a * b in limbs of 18 bits, so that no product is rounded
local function times(a, b)
  local left, right, limbs = {}, {}, {0, 0, 0, 0, 0, 0, 0}
  for place = 1, 3 do
    left[place], right[place] = a % 262144, b % 262144
    a, b = math.floor(a / 262144), math.floor(b / 262144)
  end
  for i = 1, 3 do
    for j = 1, 3 do
      local at = i + j - 1
      local sum = limbs[at] + left[i] * right[j]
      limbs[at] = sum % 262144
      limbs[at + 1] = limbs[at + 1] + math.floor(sum / 262144)
    end
  end
  for place = 1, 6 do
    limbs[place + 1] = limbs[place + 1] + math.floor(limbs[place] / 262144)
    limbs[place] = limbs[place] % 262144
  end
  return limbs
end

local function is_less(left, right)
  for place = 7, 1, -1 do
    if left[place] ~= right[place] then
      return left[place] < right[place]
    end
  end
  return false
end

-- floor(a * b / c)
local function share(a, b, c)
  local product = times(a, b)
  local quotient = math.floor(a / c * b)
  while is_less(product, times(quotient, c)) do
    quotient = quotient - 1
  end
  while not is_less(product, times(quotient + 1, c)) do
    quotient = quotient + 1
  end
  return quotient
end

local found = redis.call('MGET', unpack(KEYS))
if is_lost(found[1], ARGV[1]) then
  return {'lost'}
end
if not found[2] then
  return {'closed'}
end
local holder, written, items = unpack_hold(found[2])
local time = micros()
local now = time / 1000000
local rows, asked, writes = {}, {}, {}
local count = #KEYS - 2
local missing, exhausted, contended
for place = 1, count do
  local raw = found[place + 2]
  if not raw then
    missing = place
    break
  end
  local row = unpack_row(KEYS[place + 2], raw)
  rows[place], asked[place] = row, tonumber(ARGV[place + 2])
  advance(row, now)
  row.used_at = now
  if row.held + row.spent + asked[place] > row.amount then
    if row.spent + asked[place] > row.amount then
      exhausted = exhausted or place
    else
      contended = contended or place
    end
  end
end

local function write()
  for _, row in ipairs(rows) do
    writes[#writes + 1] = row.key
    writes[#writes + 1] = pack_row(row)
  end
  if #writes > 0 then
    redis.call('MSET', unpack(writes))
  end
end

if missing then
  write()
  return {'refused', unknown(KEYS[missing + 2])}
end
local first = exhausted or contended
if first then
  -- The largest common share: all charges shrink in the same proportion, since they are one amount of output in several units.
  local room, whole = 1, 1
  for place, row in ipairs(rows) do
    local left = row.amount - row.held - row.spent
    if left < 0 or is_less(times(left, whole), times(room, asked[place])) then
      room, whole = math.max(left, 0), asked[place]
    end
  end
  local refused = refusal(exhausted and 'exhausted' or 'contended', rows[first], asked[first])
  for place = 1, count do
    local part = share(asked[place], room, whole)
    if asked[place] > 0 and part <= 0 then
      write()
      return {'refused', refused}
    end
    asked[place] = part
  end
end

local crossed = {}
for place, row in ipairs(rows) do
  take(row, asked[place], crossed)
  if row.unit ~= CALLS then
    hold_more(items, row, asked[place])
  end
end
writes[1], writes[2] = KEYS[2], pack_hold(holder, written, pack_items(items))
write()
return {'granted', time, crossed, asked}
