-- Renew the leases of many batches. ARGV: lease ms, then 2 a batch: id, holder.
-- Returns {server ms, then 2 a batch: its status, or lost (somebody else has it, or nobody needs it); 1 if its input file is there}.
local lease_ms, now = tonumber(ARGV[1]), now_ms()
local out = {now}
for i = 2, #ARGV, 2 do
  local holder, status, input = unpack(redis.call('HMGET', P .. 'batch:' .. ARGV[i], 'holder', 'status', 'input'))
  local mine = holder == ARGV[i + 1]
  if mine then redis.call('ZADD', P .. 'batches-open', 'XX', string.format('%d', now + lease_ms), ARGV[i]) end
  out[#out + 1] = mine and status or 'lost'
  out[#out + 1] = mine and redis.call('HEXISTS', P .. 'files', input) or 1
end
return out
