-- Take over messages that nobody has acknowledged for a while; those tried too often go to the dead ones.
-- KEYS: the log, the dead letters. ARGV: group, consumer, ms, where to go on, count, most tries, most dead.
-- Returns where to go on ("0-0" at the end), the messages as {id, tries, message, group}, how many died,
-- how many were trimmed unhandled, and whether some were that the group had not been given at all.
local group, consumer = ARGV[1], ARGV[2]
local reply = redis.call('XAUTOCLAIM', KEYS[1], group, consumer, ARGV[3], ARGV[4], 'COUNT', ARGV[5])
local taken, died = {}, 0
for _, entry in ipairs(reply[2]) do
  local id, message, only = entry[1], '', ''
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'm' then message = entry[2][i + 1] end
    if entry[2][i] == 'g' then only = entry[2][i + 1] end
  end
  local tries = redis.call('XPENDING', KEYS[1], group, id, id, 1)[1][4]
  if tries > tonumber(ARGV[6]) then
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*',
      'm', message, 'error', 'its consumer died', 'tries', tries - 1, 'consumer', '')
    redis.call('XACK', KEYS[1], group, id)
    died = died + 1
  else
    taken[#taken + 1] = {id, tries, message, only}
  end
end

local behind, added, length = 0, 0, 0
local stream = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #stream, 2 do
  if stream[i] == 'entries-added' then added = stream[i + 1] end
  if stream[i] == 'length' then length = stream[i + 1] end
end
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local name, read
  for i = 1, #fields, 2 do
    if fields[i] == 'name' then name = fields[i + 1] end
    if fields[i] == 'entries-read' then read = fields[i + 1] end
  end
  if name == group and read and read < added - length then behind = 1 end
end
return {reply[1], taken, died, #(reply[3] or {}), behind}
