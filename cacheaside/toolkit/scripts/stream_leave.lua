-- Take a consumer out of its group, and those that have long been silent, if nothing waits for them.
-- KEYS: the log. ARGV: the group, the consumer, ms of silence. Returns how many went.
local gone = 0
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local one = {}
  for i = 1, #fields, 2 do one[fields[i]] = fields[i + 1] end
  if one['pending'] == 0 and (one['name'] == ARGV[2] or one['idle'] > tonumber(ARGV[3])) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], one['name'])
    gone = gone + 1
  end
end
return gone
