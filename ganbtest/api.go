package ganbtest

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// userInfo is the endpoint of OpenID Connect Core section 5.3.
func (s *Server) userInfo(w http.ResponseWriter, r *http.Request) {
	g, ok := s.granted(bearer(r))
	if !ok {
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		writeTokenRefused(w)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"sub": g.Subject, "iss": s.issuer()})
}

func writeTokenRefused(w http.ResponseWriter) {
	writeAPIError(w, http.StatusUnauthorized, "WG_ERR_105", "The access token is not valid.")
}

func writeBadParameter(w http.ResponseWriter, name string) {
	writeAPIError(w, http.StatusBadRequest, "WG_ERR_110", "The parameter "+name+" is not valid.")
}

type grantKey struct{}

// GrantFromContext returns whose token a request to Options.API came with. The second
// value is false in any other context.
func GrantFromContext(ctx context.Context) (Grant, bool) {
	g, ok := ctx.Value(grantKey{}).(Grant)
	return g, ok
}

// api is the bank's API for one kind of customer: the application's own, where there is
// one, and the box's for what that answers 404.
func (s *Server) api() http.HandlerFunc {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /accounts", s.accounts)
	mux.HandleFunc("GET /accounts/balances", s.balances)
	mux.HandleFunc("GET /accounts/transactions", s.transactions)
	mux.HandleFunc("POST /transfer/request", s.transferRequest)
	mux.HandleFunc("/", writeNoOperation)
	return func(w http.ResponseWriter, r *http.Request) {
		g, ok := s.granted(r.Header.Get("X-Access-Token"))
		if !ok {
			writeTokenRefused(w)
			return
		}
		r = r.WithContext(context.WithValue(r.Context(), grantKey{}, g))
		if s.opts.API != nil {
			a := newAnswer()
			s.opts.API.ServeHTTP(a, r)
			if a.status != http.StatusNotFound {
				a.copyTo(w)
				return
			}
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		mux.ServeHTTP(w, r)
	}
}

func writeNoOperation(w http.ResponseWriter, _ *http.Request) {
	writeAPIError(w, http.StatusMethodNotAllowed, "WG_ERR_019", "The operation is not found.")
}

// books returns the accounts of the user whose token came with the request, as of now.
func (s *Server) books(r *http.Request) (b books, now time.Time) {
	g, _ := GrantFromContext(r.Context())
	return booksOf(g.Subject), s.opts.Now().In(japan)
}

func (s *Server) accounts(w http.ResponseWriter, r *http.Request) {
	b, now := s.books(r)
	writeJSON(w, http.StatusOK, map[string]any{
		"baseDate": date(now), "baseTime": clock(now), "accounts": b.accounts,
	})
}

// balances answers all balances, or that of the account in the parameter accountId.
func (s *Server) balances(w http.ResponseWriter, r *http.Request) {
	b, now := s.books(r)
	q, ok := parameters(w, r, "accountId")
	if !ok {
		return
	}
	id := q["accountId"]
	balances := slices.DeleteFunc(b.balances(now), func(b balance) bool { return id != "" && b.AccountID != id })
	if len(balances) == 0 {
		writeBadParameter(w, "accountId")
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"balances": balances})
}

// pageSize is how many transactions the bank answers at once.
const pageSize = 500

// transactions answers what happened on a yen ordinary account: today's transactions, or
// those between the parameters dateFrom and dateTo, the oldest first.
func (s *Server) transactions(w http.ResponseWriter, r *http.Request) {
	b, now := s.books(r)
	q, ok := parameters(w, r, "accountId", "dateFrom", "dateTo", "nextItemKey")
	if !ok {
		return
	}
	from, to := q["dateFrom"], q["dateTo"]
	switch {
	case q["accountId"] != b.accounts[0].AccountID:
		writeBadParameter(w, "accountId")
		return
	case from != "" && to != "" && from > to:
		writeBadParameter(w, "dateTo")
		return
	case from == "" && to == "":
		from, to = date(now), date(now)
	case from == "":
		from = date(opened)
	case to == "":
		to = date(now)
	}
	page := slices.DeleteFunc(b.transactions(now), func(t transaction) bool {
		return t.TransactionDate < from || t.TransactionDate > to || less(t.ItemKey, q["nextItemKey"])
	})
	answer := transactionsAnswer{
		AccountID: b.accounts[0].AccountID, CurrencyCode: "JPY", CurrencyName: "円",
		DateFrom: from, DateTo: to, BaseDate: date(now), BaseTime: clock(now),
	}
	if len(page) > pageSize {
		answer.HasNext, answer.NextItemKey = true, page[pageSize].ItemKey
		page = page[:pageSize]
	}
	answer.Count, answer.Transactions = strconv.Itoa(len(page)), page
	writeJSON(w, http.StatusOK, answer)
}

// less compares two keys, which are numbers of up to 24 digits.
func less(a, b string) bool {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) < 0
}

type transactionsAnswer struct {
	AccountID    string        `json:"accountId"`
	CurrencyCode string        `json:"currencyCode"`
	CurrencyName string        `json:"currencyName"`
	DateFrom     string        `json:"dateFrom"`
	DateTo       string        `json:"dateTo"`
	BaseDate     string        `json:"baseDate"`
	BaseTime     string        `json:"baseTime"`
	HasNext      bool          `json:"hasNext"`
	NextItemKey  string        `json:"nextItemKey,omitempty"`
	Count        string        `json:"count"`
	Transactions []transaction `json:"transactions"`
}

// parameters returns the query's parameters of these names, or answers 400. An empty one
// is as good as none.
func parameters(w http.ResponseWriter, r *http.Request, names ...string) (map[string]string, bool) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		writeBadParameter(w, "query")
		return nil, false
	}
	values := map[string]string{}
	for _, name := range names {
		values[name] = q.Get(name)
		if len(q[name]) > 1 || values[name] != "" && !validParameter(name, values[name]) {
			writeBadParameter(w, name)
			return nil, false
		}
	}
	return values, true
}

// validParameter reports whether the value has the form that the bank documents for it.
func validParameter(name, value string) bool {
	digits := strings.Trim(value, "0123456789") == ""
	switch name {
	case "accountId":
		return utf8.RuneCountInString(value) >= 12 && utf8.RuneCountInString(value) <= 29
	case "nextItemKey":
		return digits && len(value) <= 24
	default: // a date
		_, err := time.Parse(time.DateOnly, value)
		return err == nil
	}
}

// transferRequest takes any JSON object for a transfer, and moves no money. The same
// Idempotency-Key of a user's is given the same number for 24 hours.
func (s *Server) transferRequest(w http.ResponseWriter, r *http.Request) {
	b, now := s.books(r)
	body := struct {
		AccountID string `json:"accountId"`
	}{b.accounts[0].AccountID}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		writeBadParameter(w, "body")
		return
	}
	if body.AccountID != b.accounts[0].AccountID {
		writeBadParameter(w, "accountId")
		return
	}
	g, _ := GrantFromContext(r.Context())
	key := idempotencyKey{g.Subject, r.Header.Get("Idempotency-Key")}
	writeJSON(w, http.StatusCreated, map[string]any{
		"accountId": body.AccountID, "resultCode": "2", "applyNo": s.transferNumber(key, now),
	})
}

// idempotencyKey is the header's value, which a user may leave out.
type idempotencyKey struct{ subject, value string }

// transfer is one that was requested with an Idempotency-Key.
type transfer struct {
	number string
	at     time.Time
}

// keyLifetime is how long the bank knows an Idempotency-Key.
const keyLifetime = 24 * time.Hour

// transferNumber returns the number of the transfer with this Idempotency-Key, a new one
// if there is none.
func (s *Server) transferNumber(key idempotencyKey, now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, again := s.byKey[key]; again && now.Sub(t.at) < keyLifetime {
		return t.number
	}
	s.transfers++
	number := strconv.Itoa(2018_0000_0000_0000 + s.transfers)
	if key.value != "" {
		s.byKey[key] = transfer{number, now}
	}
	return number
}
