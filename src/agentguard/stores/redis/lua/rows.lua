-- The algebra of limits as in agentguard/core/limits.py, on rows that are packed into strings.
--
-- A row is doubles: held, used_at, spent, amount, ends, start, code, id, warn_next, warned, warned_in, seconds, the number of
-- soft steps and the steps; behind them the buckets of a rolling window: number, spent, held of each. All counts are integers
-- below 2^53, so they are exact. What changes with every decision stands in front: the rest is copied as it is.
-- code = unit + 10 * period. Units: 0 tokens, 1 nano-USD, 2 calls, 3 calls at once. Periods: 0 life, 1 minute, 2 hour, 3 day,
-- 4 month, 5 rolling.
local CALLS, AT_ONCE, MONTH, ROLLING = 2, 3, 4, 5
local BUCKETS = 60
local LENGTHS = {60, 3600, 86400}
local HEAD = '<ddddddddddddd'
local HEAD_BYTES = 104

local function unpack_row(key, raw)
  local row = {key = key}
  local code, steps, at
  row.held, row.used_at, row.spent, row.amount, row.ends, row.start, code, row.id, row.warn_next, row.warned, row.warned_in,
    row.seconds, steps, at = struct.unpack(HEAD, raw)
  row.unit = code % 10
  row.period = (code - row.unit) / 10
  row.steps, row.buckets = {}, {}
  for place = 1, steps do
    row.steps[place], at = struct.unpack('<d', raw, at)
  end
  while at < #raw do
    local place = #row.buckets
    row.buckets[place + 1], row.buckets[place + 2], row.buckets[place + 3], at = struct.unpack('<ddd', raw, at)
  end
  return row
end

local function pack_row(row)
  local parts = {struct.pack(HEAD, row.held, row.used_at, row.spent, row.amount, row.ends, row.start, row.unit + 10 * row.period,
    row.id, row.warn_next, row.warned, row.warned_in, row.seconds, #row.steps)}
  for _, step in ipairs(row.steps) do
    parts[#parts + 1] = struct.pack('<d', step)
  end
  for _, number in ipairs(row.buckets) do
    parts[#parts + 1] = struct.pack('<d', number)
  end
  return table.concat(parts)
end

-- ceil(amount * step / 100), exact where the product would not be
local function part_of(amount, step)
  local rest = math.fmod(amount, 100)
  return (amount - rest) / 100 * step + math.ceil(rest * step / 100)
end

local function set_next_step(row)
  row.warn_next = math.huge
  for place = #row.steps, 1, -1 do
    if row.steps[place] > row.warned then
      row.warn_next = part_of(row.amount, row.steps[place])
    end
  end
end

local function forget_steps_not_passed(row)
  local warned = 0
  for _, step in ipairs(row.steps) do
    if step <= row.warned and row.spent >= part_of(row.amount, step) then
      warned = step
    end
  end
  row.warned = warned
  set_next_step(row)
end

local function days_before(year, month)  -- from 1970-01-01 to the first of a month
  if month <= 2 then
    year = year - 1
    month = month + 12
  end
  return 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
    + math.floor((153 * (month - 3) + 2) / 5) - 719468
end

local function month_of(now)
  local today = math.floor(now / 86400)
  local year = 1970 + math.floor(today / 365.2425)
  while days_before(year + 1, 1) <= today do
    year = year + 1
  end
  while days_before(year, 1) > today do
    year = year - 1
  end
  local month = 12
  while days_before(year, month) > today do
    month = month - 1
  end
  local following = month == 12 and days_before(year + 1, 1) or days_before(year, month + 1)
  return days_before(year, month) * 86400, following * 86400
end

-- number // width as Python has it: by the exact remainder, not by a quotient that was rounded
local function floor_divide(number, width)
  local quotient = (number - math.fmod(number, width)) / width
  local whole = math.floor(quotient)
  return quotient - whole > 0.5 and whole + 1 or whole
end

local function drop_buckets_before(row, oldest)
  local kept = {}
  for place = 1, #row.buckets, 3 do
    local number, spent, held = row.buckets[place], row.buckets[place + 1], row.buckets[place + 2]
    if number < oldest then
      row.spent = row.spent - spent
      row.held = row.held - held
    else
      kept[#kept + 1], kept[#kept + 2], kept[#kept + 3] = number, spent, held
    end
  end
  row.buckets = kept
end

-- The window never moves back, whatever the clock does.
local function advance(row, now)
  if now < row.ends then
    return
  end
  if row.period == ROLLING then
    local width = row.seconds / BUCKETS
    local current = floor_divide(now, width)
    row.start = current
    row.ends = (current + 1) * width
    drop_buckets_before(row, current - BUCKETS)
    if row.warned > 0 and row.warned_in < current - BUCKETS then
      forget_steps_not_passed(row)
    end
    return
  end
  if row.period == MONTH then
    row.start, row.ends = month_of(now)
  else
    local length = LENGTHS[row.period]
    row.start = now - math.fmod(now, length)
    row.ends = row.start + length
  end
  row.spent, row.held = 0, 0
  forget_steps_not_passed(row)
end

local function add(row, spent, held, start)
  if row.period == ROLLING then
    local buckets = row.buckets
    local place = #buckets - 2
    while place > 0 and buckets[place] ~= start do
      place = place - 3
    end
    if place <= 0 then
      if start ~= row.start then
        return
      end
      place = #buckets + 1
      buckets[place], buckets[place + 1], buckets[place + 2] = start, 0, 0
    end
    buckets[place + 1] = buckets[place + 1] + spent
    buckets[place + 2] = buckets[place + 2] + held
  elseif start ~= row.start then
    return
  end
  row.spent = row.spent + spent
  row.held = row.held + held
end

-- When enough of the window will be over for an amount to fit; '' when it never will.
local function retry_at(row, requested)
  if requested > row.amount or row.ends == math.huge then
    return ''
  end
  local moment = row.ends
  if row.period == ROLLING then
    local surplus = row.spent + row.held + requested - row.amount
    for place = 1, #row.buckets, 3 do
      surplus = surplus - row.buckets[place + 1] - row.buckets[place + 2]
      if surplus <= 0 then
        moment = (row.buckets[place] + BUCKETS + 1) * (row.seconds / BUCKETS)
        break
      end
    end
  end
  return string.format('%.17g', moment)
end

local function tell(row, crossed)
  if row.spent < row.warn_next then
    return
  end
  for _, step in ipairs(row.steps) do
    if row.spent >= part_of(row.amount, step) then
      row.warned = step
    end
  end
  row.warned_in = row.start
  set_next_step(row)
  crossed[#crossed + 1] = {row.key, row.warned, row.spent, row.amount}
end

-- What is taken is held until it is settled; calls are spent at once.
local function take(row, amount, crossed)
  if row.unit == CALLS then
    add(row, amount, 0, row.start)
    tell(row, crossed)
  else
    add(row, 0, amount, row.start)
  end
end

local function refusal(kind, row, requested)
  return {kind, row.key, row.amount, row.spent, row.held, requested, retry_at(row, requested)}
end

local function unknown(key)
  return {'unregistered', key, 0, 0, 0, 0, ''}
end

-- A hold is: its holder, what was answered (empty: a plain grant), and its items: key, row id, start, held, continued.
local function pack_item(key, id, start, held, continued)
  return struct.pack('<I4c0dddd', #key, key, id, start, held, continued)
end

local function pack_hold(holder, answer, items)
  return struct.pack('<I4c0I4c0', #holder, holder, #answer, answer) .. items
end

local function pack_items(items)
  local packed = {}
  for place, item in ipairs(items) do
    packed[place] = pack_item(item.key, item.id, item.start, item.held, item.continued)
  end
  return table.concat(packed)
end

-- More of a row: in the item of this window, or in one that continues that of a window before.
local function hold_more(items, row, amount)
  local last
  for _, item in ipairs(items) do
    if item.key == row.key and item.id == row.id then
      last = item
    end
  end
  if last and last.start == row.start then
    last.held, last.continued = last.held + amount, 0
    return
  end
  if last then
    last.continued = 1
  end
  items[#items + 1] = {key = row.key, id = row.id, start = row.start, held = amount, continued = 0}
end

local function unpack_hold(raw)
  local holder, answer, at = struct.unpack('<I4c0I4c0', raw)
  local items = {}
  while at <= #raw do
    local item = {}
    item.key, item.id, item.start, item.held, item.continued, at = struct.unpack('<I4c0dddd', raw, at)
    items[#items + 1] = item
  end
  return holder, answer, items
end

-- The state is: the generation (16 letters), when it began, and until when processes tell it what the one before had counted.
local function is_lost(state, generation)
  return not state or string.sub(state, 1, 16) ~= generation
end
