-- Say which entries are about to run or to be prepared, so that a death can be blamed on them and on nobody else.
-- ARGV: worker, "flow entry" pairs joined by newlines, number of the last claim if all that it brought has been prepared, or 0, the
-- tuning job of which a unit is about to run, or ''.
-- Returns 1, or 0 when my lease is gone.
if lease(ARGV[1]) <= 0 then return 0 end
local held = P .. 'held:' .. ARGV[1]
redis.call('HSET', held, '#run', ARGV[2])
if ARGV[4] == '' then redis.call('HDEL', held, '#tune') else redis.call('HSET', held, '#tune', ARGV[4]) end
-- A claim whose reply is still on its way has another number: what that has brought is yet to be prepared.
if redis.call('HGET', held, '#claim') == ARGV[3] then redis.call('HDEL', held, '#new') end
return 1
