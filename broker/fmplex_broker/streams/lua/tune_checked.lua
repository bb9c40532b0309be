-- Say what was found in the files of a tuning job. ARGV: id, error or '', its words, examples. Returns nothing.
local id, key = ARGV[1], tune_key(ARGV[1])
local status, owner = unpack(redis.call('HMGET', key, 'status', 'owner'))
if status ~= 'validating_files' then return end
if ARGV[2] ~= '' then
  redis.call('HSET', key, 'error', ARGV[2])
  say(id, 'error', ARGV[3])
  end_tune(id, owner, 'failed')
else
  redis.call('ZREM', UNCHECKED, id)
  redis.call('HSET', key, 'status', 'queued', 'queued_at', seconds(), 'examples', ARGV[4])
  local _, there = places()
  say(id, 'info', 'Files validated, moving job to queued state; workers that tune: ' .. #there .. ', jobs in hand: '
      .. redis.call('SCARD', TAKEN))
  await_worker(id, owner)
  say_why_it_waits(id)
end
