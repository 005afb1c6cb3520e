-- KEYS: rows ...   Returns the time and the rows, false for those that are not known.
local rows = #KEYS > 0 and redis.call('MGET', unpack(KEYS)) or {}
return {micros(), rows}
