-- Tell everybody who listens to a channel.
-- KEYS: the channel. ARGV: the message.
return redis.call('PUBLISH', KEYS[1], ARGV[1])
