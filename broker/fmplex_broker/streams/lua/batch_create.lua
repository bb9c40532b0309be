-- Add a batch. ARGV: id, owner, order, input file, seconds of its window, ms for which it is kept after that, open batches that an
-- owner may have, id before which the owner's batches are long gone.
-- Returns ok (also when it is there: it was sent twice) | many | no_file.
local id, owner, window, kept = ARGV[1], ARGV[2], tonumber(ARGV[5]), tonumber(ARGV[6])
local batch, of, open = P .. 'batch:' .. id, P .. 'batches:' .. owner, P .. 'batches-open:' .. owner
if redis.call('EXISTS', batch) == 1 then return 'ok' end
if redis.call('HEXISTS', P .. 'files', ARGV[4]) == 0 then return 'no_file' end
if redis.call('SCARD', open) >= tonumber(ARGV[7]) then return 'many' end
local now = math.floor(now_ms() / 1000)
redis.call('HSET', batch, 'order', ARGV[3], 'owner', owner, 'input', ARGV[4], 'status', 'validating',
           'created_at', string.format('%d', now), 'expires_at', string.format('%d', now + window))
redis.call('SADD', P .. 'holders:' .. ARGV[4], id)
redis.call('SADD', open, id)
redis.call('ZADD', P .. 'batches-open', 0, id)
redis.call('ZADD', of, 0, id)
redis.call('ZREMRANGEBYLEX', of, '-', '(' .. ARGV[8])
local ttl = string.format('%d', window * 1000 + kept)
redis.call('PEXPIRE', batch, ttl)
for _, list in ipairs({of, open}) do
  if redis.call('PTTL', list) < tonumber(ttl) then redis.call('PEXPIRE', list, ttl) end
end
return 'ok'
