-- Take messages out of the dead letters, and publish them again for the group that they died in.
-- KEYS: the log, the dead letters. ARGV: the group, 0 to drop them instead, then their ids.
-- Returns how many there were. Nothing is trimmed: who revives knows how many.
local revived = 0
for i = 3, #ARGV do
  local entry = redis.call('XRANGE', KEYS[2], ARGV[i], ARGV[i])[1]
  if entry then
    for n = 1, #entry[2], 2 do
      if entry[2][n] == 'm' and ARGV[2] ~= '0' then
        redis.call('XADD', KEYS[1], '*', 'm', entry[2][n + 1], 'g', ARGV[1])
      end
    end
    redis.call('XDEL', KEYS[2], ARGV[i])
    revived = revived + 1
  end
end
return revived
