-- A worker's verdict on a proposed version, and the count of the votes. With worker '' it only counts.
-- A version serves once every live worker (at least one) has accepted it; one refusal and it never does.
-- ARGV: vfm, version, worker or '', error JSON or ''. Returns {state, error JSON}: serving | waiting | rejected | gone.
local vfm, version, worker, refusal = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local r = record(vfm)
if not r then return {'gone', ''} end
local offered = redis.call('HGET', VFMS, vfm .. ':next')
if not offered or string.match(offered, '^([^|]*)|') ~= version then
  if r.version == version and r.status == 'serving' then return {'serving', ''} end
  local told = redis.call('HGET', VFMS, vfm .. ':error')
  return told and {'rejected', told} or {'gone', ''}
end

if refusal ~= '' then
  redis.call('HDEL', VFMS, vfm .. ':next', vfm .. ':votes', vfm .. ':deaths')
  redis.call('SREM', P .. 'offers', vfm)
  redis.call('HSET', VFMS, vfm .. ':error', refusal)
  if r.status == 'validating' then r.status = 'rejected' end
  r.generation = r.generation + 1
  put_record(vfm, r)
  return {'rejected', refusal}
end

local votes = redis.call('HGET', VFMS, vfm .. ':votes') or '\n'
if worker ~= '' then
  votes = votes .. worker .. '\n'
  redis.call('HSET', VFMS, vfm .. ':votes', votes)
end
local live = redis.call('ZRANGEBYSCORE', P .. 'leases', '(' .. string.format('%d', now_ms()), '+inf')
for _, w in ipairs(live) do
  if not string.find(votes, '\n' .. w .. '\n', 1, true) then return {'waiting', ''} end
end
if #live == 0 then return {'waiting', ''} end

-- What served until now can be rolled back to: "version ms" a line, newest first.
local PAST = 16
if r.version ~= '' and r.version ~= version then
  local lines = {r.version .. ' ' .. string.format('%d', now_ms())}
  for line in string.gmatch(redis.call('HGET', VFMS, vfm .. ':past') or '', '[^\n]+') do
    local past = string.match(line, '^(%S+)')
    if #lines < PAST and past ~= r.version and past ~= version then lines[#lines + 1] = line end
  end
  redis.call('HSET', VFMS, vfm .. ':past', table.concat(lines, '\n'))
end
redis.call('SREM', P .. 'offers', vfm)
redis.call('HSET', VFMS, vfm .. ':spec', string.match(offered, '^[^|]*|(.*)$'))
redis.call('HDEL', VFMS, vfm .. ':next', vfm .. ':votes', vfm .. ':error', vfm .. ':deaths')
r.status, r.version, r.generation = 'serving', version, r.generation + 1
put_record(vfm, r)
return {'serving', ''}
