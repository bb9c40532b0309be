-- Say which entries are about to run, so that a death can be blamed on them and on nobody else.
-- ARGV: worker, "flow entry" pairs joined by newlines. Returns 1, or 0 when my lease is gone.
if lease(ARGV[1]) <= 0 then return 0 end
redis.call('HSET', P .. 'held:' .. ARGV[1], '#run', ARGV[2])
return 1
