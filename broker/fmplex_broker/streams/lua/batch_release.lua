-- Give batches back, for whoever comes next. ARGV: 1 if nothing is left to be done for them, else 0; then 2 a batch: id, holder.
for i = 2, #ARGV, 2 do
  local batch = P .. 'batch:' .. ARGV[i]
  if redis.call('HGET', batch, 'holder') == ARGV[i + 1] then
    redis.call('HDEL', batch, 'holder')
    redis.call('HINCRBY', batch, 'takes', -1)
    if ARGV[1] == '1' then
      redis.call('HDEL', batch, 'done')
      redis.call('DEL', P .. 'parts:' .. ARGV[i])
      redis.call('ZREM', P .. 'batches-open', ARGV[i])
    else redis.call('ZADD', P .. 'batches-open', 'XX', 0, ARGV[i]) end
  end
end
