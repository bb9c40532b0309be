-- Move a batch from one state to another. ARGV: id, holder, to, states from which it may come (joined by spaces), ms for which it is
-- kept once it has ended (0: it has not), then fields and values.
-- Returns the status that it has afterwards, or lost.
local id, batch, to, kept = ARGV[1], P .. 'batch:' .. ARGV[1], ARGV[3], tonumber(ARGV[5])
local holder, status, owner, input = unpack(redis.call('HMGET', batch, 'holder', 'status', 'owner', 'input'))
if holder ~= ARGV[2] then return 'lost' end
if not string.find(' ' .. ARGV[4] .. ' ', ' ' .. status .. ' ', 1, true) then return status end
redis.call('HSET', batch, 'status', to, to .. '_at', string.format('%d', math.floor(now_ms() / 1000)), 'takes', 0)
for i = 6, #ARGV, 2 do redis.call('HSET', batch, ARGV[i], ARGV[i + 1]) end
if kept > 0 then
  redis.call('PEXPIRE', batch, kept)
  redis.call('SREM', P .. 'batches-open:' .. owner, id)
  redis.call('SREM', P .. 'holders:' .. input, id)
end
return to
