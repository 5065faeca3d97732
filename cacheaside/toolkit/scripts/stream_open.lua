-- Make a consumer group, and the stream, unless they are there.
-- KEYS: the log. ARGV: the group; "0" to begin with the oldest message there is, "$" with the next one.
-- Returns 1 when it was made.
local read = 0
if redis.call('EXISTS', KEYS[1]) == 1 then
  for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    for i = 1, #fields, 2 do
      if fields[i] == 'name' and fields[i + 1] == ARGV[1] then return 0 end
    end
  end
  local stream = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #stream, 2 do
    if ARGV[2] == '$' and stream[i] == 'entries-added' then read = stream[i + 1] end
  end
end
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM', 'ENTRIESREAD', read)
return 1
