-- Each request brings a user key that was never there before, for an entry that is sealed with another one: a
-- derivation each, answered with 401.
local run = os.time()
local count = 0

function request()
   count = count + 1
   wrk.headers["X-User-Key"] = string.format("storm-user-key-%d-%d", run, count)
   return wrk.format("GET")
end
