-- Give batches back, for whoever comes next. ARGV: over (nothing is left to be done for them) | first | last (those that
-- wait already are taken before them), then 2 a batch: id, holder.
for i = 2, #ARGV, 2 do
  local batch = P .. 'batch:' .. ARGV[i]
  if redis.call('HGET', batch, 'holder') == ARGV[i + 1] then
    redis.call('HDEL', batch, 'holder')
    redis.call('HINCRBY', batch, 'takes', -1)
    if ARGV[1] == 'over' then
      redis.call('HDEL', batch, 'done')
      redis.call('DEL', P .. 'parts:' .. ARGV[i])
      redis.call('ZREM', P .. 'batches-open', ARGV[i])
    else
      local since = ARGV[1] == 'last' and string.format('%d', now_ms()) or '0'
      redis.call('ZADD', P .. 'batches-open', 'XX', since, ARGV[i])
    end
  end
end
