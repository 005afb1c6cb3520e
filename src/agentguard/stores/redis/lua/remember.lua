-- The store has lost what it was told: a process tells again what it has counted and holds itself, once in a generation.
--
-- KEYS: state, limits, ids, who has told, open, the host's holders, rows ..., holds ...   ARGV: a new generation, who tells,
-- microseconds to learn, microseconds to hold, number of rows; for each row: name, specification, row; for each hold: id, answer,
-- number of items, and for each item: place of the row, start, held, continued
-- Returns {generation, time}.
local time = micros()
local now = time / 1000000
local holder = string.match(ARGV[2], '^[^/]*')
redis.call('SADD', KEYS[6], holder)
local state = redis.call('GET', KEYS[1])
local generation, began = ARGV[1], time
local learning = 0
if state then
  generation = string.sub(state, 1, 16)
  began, learning = struct.unpack('<dd', state, 17)
end
-- Nothing is granted until the others have had the time to tell theirs.
learning = math.max(learning, began + tonumber(ARGV[3]))
redis.call('SET', KEYS[1], generation .. struct.pack('<dd', began, learning))
if redis.call('HGET', KEYS[4], ARGV[2]) == generation then
  return {generation, time}
end
redis.call('HSET', KEYS[4], ARGV[2], generation)

local function merge_buckets(row, mine)
  local counted, numbers = {}, {}
  for _, buckets in ipairs({row.buckets, mine.buckets}) do
    for place = 1, #buckets, 3 do
      local number = buckets[place]
      if not counted[number] then
        counted[number] = {0, 0}
        numbers[#numbers + 1] = number
      end
      counted[number][1] = counted[number][1] + buckets[place + 1]
      counted[number][2] = counted[number][2] + buckets[place + 2]
    end
  end
  table.sort(numbers)
  row.buckets, row.spent, row.held = {}, 0, 0
  for _, number in ipairs(numbers) do
    local place = #row.buckets
    row.buckets[place + 1], row.buckets[place + 2], row.buckets[place + 3] = number, counted[number][1], counted[number][2]
    row.spent, row.held = row.spent + counted[number][1], row.held + counted[number][2]
  end
end

local function merge(row, mine)
  advance(row, now)
  advance(mine, now)
  if row.period == ROLLING then
    merge_buckets(row, mine)
  elseif row.start == mine.start then
    row.spent, row.held = row.spent + mine.spent, row.held + mine.held
  elseif row.start < mine.start then
    row.start, row.ends, row.spent, row.held = mine.start, mine.ends, mine.spent, mine.held
  end
end

local count = tonumber(ARGV[5])
local rows = {}
local at = 6
for place = 1, count do
  local key = KEYS[place + 6]
  local name, specification, written = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  at = at + 3
  local raw = redis.call('GET', key)
  local row = unpack_row(key, raw or written)
  if raw then
    merge(row, unpack_row(key, written))
  else
    row.id = redis.call('INCR', KEYS[3])
    redis.call('HSET', KEYS[2], name, specification)
  end
  row.used_at = now
  rows[place] = row
  redis.call('SET', key, pack_row(row))
end
for place = count + 7, #KEYS do
  local id, answer, items = ARGV[at], ARGV[at + 1], {}
  local many = tonumber(ARGV[at + 2])
  at = at + 3
  for item = 1, many do
    local row = rows[tonumber(ARGV[at])]
    items[item] = pack_item(row.key, row.id, tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]))
    at = at + 4
  end
  redis.call('SET', KEYS[place], pack_hold(holder, answer, table.concat(items)))
  redis.call('ZADD', KEYS[5], string.format('%.0f', time + ARGV[4]), id)
end
return {generation, time}
