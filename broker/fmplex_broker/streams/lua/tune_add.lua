-- Add a tuning job. ARGV: id, owner, spec, weight, open jobs that an owner may have.
-- Returns ok (also when it is there: it was sent twice) | many | off (workers live, and none of them tunes).
local id, owner = ARGV[1], ARGV[2]
local key, open = tune_key(id), P .. 'tunes:open:' .. owner
if redis.call('EXISTS', key) == 1 then return 'ok' end
local live, there = places()
if live > 0 and #there == 0 then return 'off' end
if redis.call('SCARD', open) >= tonumber(ARGV[5]) then return 'many' end
redis.call('HSET', key, 'spec', ARGV[3], 'owner', owner, 'weight', ARGV[4], 'status', 'validating_files', 'created_at', seconds())
redis.call('ZADD', TUNES, string.format('%d', now_ms()), id)
redis.call('ZADD', UNCHECKED, 0, id)
redis.call('SADD', open, id)
say(id, 'info', 'Created fine-tuning job ' .. id)
say(id, 'info', 'Validating files')
return 'ok'
