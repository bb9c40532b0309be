-- Save how far a tuning job is, give it back, or end it. ARGV: worker, id, take, number of this save, '' | release | the status in
-- which it ends, progress or '', tokens learnt, checkpoints that are kept or '', step of the last of them and tokens, then of its
-- end: error, vFM, version, files of results (each or ''), then 4 an event: number, level, message, data.
-- Returns {ok, what its owner asks for} | {lost, ''}.
local me, id, take, number, after = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local key = tune_key(id)
local worker, taken, saved, status, owner, was, weight = unpack(redis.call(
  'HMGET', key, 'worker', 'take', 'save', 'status', 'owner', 'was', 'weight'))
if not worker and after ~= '' and was == me .. ' ' .. take then return {'ok', ASKED[status] or ''} end  -- it was sent twice
if worker ~= me or taken ~= take or lease(me) <= now_ms() then return {'lost', ''} end
if number <= tonumber(saved) then return {'ok', ASKED[status] or ''} end  -- a later one came first
redis.call('HSET', key, 'save', ARGV[4])

if ARGV[6] ~= '' then
  local tokens, counted = tonumber(ARGV[7]), tonumber(redis.call('HGET', key, 'counted'))
  redis.call('HSET', key, 'progress', ARGV[6])
  if tokens > counted then
    charge(owner, tokens - counted, weight)
    redis.call('HSET', key, 'counted', ARGV[7])
  end
end
if ARGV[8] ~= '' then
  redis.call('HSET', key, 'checkpoints', ARGV[8])
  if tonumber(ARGV[9]) > tonumber(redis.call('HGET', key, 'step') or -1) then
    redis.call('HSET', key, 'step', ARGV[9], 'saved', ARGV[10], 'attempts', 0)
  end
end
local said = tonumber(redis.call('HGET', key, 'said'))
for i = 15, #ARGV, 4 do
  if tonumber(ARGV[i]) > said then
    say(id, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
    said = tonumber(ARGV[i])
  end
end
redis.call('HSET', key, 'said', said)

if after == '' then return {'ok', ASKED[status] or ''} end
disown(id)
redis.call('HSET', key, 'was', me .. ' ' .. take)
if after ~= 'release' then
  for i, name in ipairs({'error', 'vfm', 'version', 'result_files'}) do
    if ARGV[10 + i] ~= '' then redis.call('HSET', key, name, ARGV[10 + i]) end
  end
  if not ENDS[status] then end_tune(id, owner, after) end
elseif status == 'running' then
  redis.call('HSET', key, 'status', 'queued', 'queued_at', seconds())
  await_worker(id, owner)
end
return {'ok', ASKED[status] or ''}
