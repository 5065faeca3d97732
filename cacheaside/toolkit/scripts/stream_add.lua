-- Append a message to a stream that holds about so many.
-- KEYS: the log. ARGV: the most entries, the message, the group that it is for ("" for all).
-- Returns its id, and how many entries were trimmed that some group had not been given.
local function info(kind)
  local reply, fields = redis.call('XINFO', kind, KEYS[1]), {}
  if kind == 'GROUPS' then return reply end
  for i = 1, #reply, 2 do fields[reply[i]] = reply[i + 1] end
  return fields
end

local before = redis.call('XLEN', KEYS[1])
local fields = ARGV[3] == '' and {'m', ARGV[2]} or {'m', ARGV[2], 'g', ARGV[3]}
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(fields))
local trimmed = before + 1 - redis.call('XLEN', KEYS[1])
if trimmed == 0 then return {id, 0} end

-- Entries are counted from the first there ever was: those up to `gone` are not there any more.
local stream = info('STREAM')
local gone, lost = stream['entries-added'] - stream['length'], 0
for _, group in ipairs(info('GROUPS')) do
  for i = 1, #group, 2 do
    local read = group[i + 1]
    if group[i] == 'entries-read' and read then lost = math.max(lost, math.min(trimmed, gone - read)) end
  end
end
return {id, lost}
