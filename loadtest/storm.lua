-- Each request has a new user key, for an entry that is encrypted with another one: one derivation each, and a 401
-- response.
local run = os.time()
local count = 0

function request()
   count = count + 1
   wrk.headers["X-User-Key"] = string.format("storm-user-key-%d-%d", run, count)
   return wrk.format("GET")
end
