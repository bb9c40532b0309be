-- Read what flows have queued, without their payloads. ARGV: flows.
-- Per flow {jobs, of them in the hands of workers, jobs ever queued, entry of the oldest job or ''}.
local out = {}
for i, flow in ipairs(ARGV) do
  local jobs, held, ever, oldest = 0, 0, 0, ''
  local stream = redis.pcall('XINFO', 'STREAM', queue(flow))
  if not is_foreign(stream) and not is_missing(stream) then
    for k = 1, #stream, 2 do
      local value = stream[k + 1]
      if stream[k] == 'length' then jobs = value
      elseif stream[k] == 'entries-added' then ever = value
      elseif stream[k] == 'first-entry' and value then oldest = value[1] end
    end
    local pends = redis.pcall('XPENDING', queue(flow), 'w')
    if not is_missing(pends) then held = pends[1] end  -- no group: nothing was delivered yet
  end
  out[i] = {jobs, held, ever, oldest}
end
return out
