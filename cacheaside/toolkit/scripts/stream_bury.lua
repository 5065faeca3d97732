-- Move a message to the dead letters, unless somebody has acknowledged it.
-- KEYS: the log, the dead letters. ARGV: group, id, message, what was wrong, tries, consumer, most dead.
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*',
  'm', ARGV[3], 'error', ARGV[4], 'tries', ARGV[5], 'consumer', ARGV[6])
return 1
