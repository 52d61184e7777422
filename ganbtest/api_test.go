package ganbtest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// apiCall calls the API and returns the status and the decoded body.
func apiCall(t *testing.T, s *ganbtest.Server, token *ganbauth.Token, method, path, body string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequest(method, s.APIBase()+path, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("x-access-token", token.AccessToken)
	return apiAnswer(t, s, req)
}

func apiAnswer(t *testing.T, s *ganbtest.Server, req *http.Request) (int, map[string]any) {
	t.Helper()
	resp, err := s.Client().Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, "application/json;charset=UTF-8", resp.Header.Get("Content-Type"))
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.True(t, utf8.Valid(data))
	var answer map[string]any
	require.NoError(t, json.Unmarshal(data, &answer))
	return resp.StatusCode, answer
}

// fields are the members of an object that the bank documents, with the lengths of their
// values in characters. A question mark stands for a member that only some kinds of
// account have.
type fields map[string][2]int

func (want fields) check(t *testing.T, object map[string]any) {
	t.Helper()
	for name, limit := range want {
		name, optional := strings.CutSuffix(name, "?")
		value, ok := object[name]
		if !ok && optional {
			continue
		}
		require.True(t, ok, "%s is missing in %v", name, object)
		text, ok := value.(string)
		require.True(t, ok, "%s is a %T, not a string", name, value)
		n := utf8.RuneCountInString(text)
		require.True(t, n >= limit[0] && n <= limit[1], "%s has %d characters: %q", name, n, text)
	}
	for name := range object {
		_, required := want[name]
		_, optional := want[name+"?"]
		require.True(t, required || optional, "the bank knows no %s", name)
	}
}

func list(t *testing.T, v any) (objects []map[string]any) {
	t.Helper()
	for _, object := range v.([]any) {
		objects = append(objects, object.(map[string]any))
	}
	return objects
}

var (
	accountFields = fields{
		"accountId": {12, 29}, "branchCode?": {3, 3}, "branchName?": {1, 30}, "accountTypeCode": {2, 2}, "accountTypeName": {1, 10},
		"accountNumber?": {7, 7}, "primaryAccountCode?": {1, 1}, "primaryAccountCodeName?": {1, 4}, "accountName?": {1, 48},
		"accountNameKana?": {1, 48}, "currencyCode": {3, 3}, "currencyName": {1, 10}, "transferLimitAmount?": {1, 20},
	}
	balanceFields = fields{
		"accountId": {12, 29}, "accountTypeCode": {2, 2}, "accountTypeName": {1, 10}, "balance": {1, 20}, "baseDate": {10, 10},
		"baseTime": {14, 14}, "withdrawableAmount?": {1, 20}, "previousDayBalance?": {1, 20}, "previousMonthBalance?": {1, 20},
		"currencyCode": {3, 3}, "currencyName": {1, 10},
	}
	transactionFields = fields{
		"transactionDate": {10, 10}, "valueDate": {10, 10}, "transactionType": {1, 1}, "amount": {1, 20}, "remarks": {1, 255},
		"balance": {1, 20}, "itemKey": {1, 24},
	}
	transactionsFields = fields{
		"accountId": {12, 29}, "currencyCode": {3, 3}, "currencyName": {1, 10}, "dateFrom": {10, 10}, "dateTo": {10, 10},
		"baseDate": {10, 10}, "baseTime": {14, 14}, "nextItemKey?": {1, 24}, "count": {1, 7},
	}
	errorFields    = fields{"errorCode": {1, 10}, "errorMessage": {1, 255}}
	transferFields = fields{"accountId": {12, 29}, "resultCode": {1, 1}, "applyNo": {16, 16}}
)

// The API has the members that the bank's public SDKs document, of their types and
// lengths.
func TestAccountsAsTheBankDocumentsThem(t *testing.T) {
	now := time.Date(2026, 11, 24, 15, 30, 59, 0, time.UTC) // the 25th in Japan
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true, Subject: "u", Now: func() time.Time { return now }})
	token := s.Token("private:account") // an ID token would be checked against the machine's clock

	status, answer := apiCall(t, s, token, "GET", "/accounts", "")
	require.Equal(t, 200, status)
	require.Equal(t, "2026-11-25", answer["baseDate"])
	require.Equal(t, "00:30:59+09:00", answer["baseTime"])
	accounts := list(t, answer["accounts"])
	require.Len(t, accounts, 2)
	for _, a := range accounts {
		accountFields.check(t, a)
	}
	require.Equal(t, "01", accounts[0]["accountTypeCode"])
	require.NotEmpty(t, accounts[0]["branchCode"])
	require.Equal(t, "11", accounts[1]["accountTypeCode"])
	require.NotContains(t, accounts[1], "branchCode", "a time deposit has no branch")
	ordinary, deposit := accounts[0]["accountId"].(string), accounts[1]["accountId"].(string)

	status, answer = apiCall(t, s, token, "GET", "/accounts/balances", "")
	require.Equal(t, 200, status)
	balances := list(t, answer["balances"])
	require.Len(t, balances, 2)
	for i, b := range balances {
		balanceFields.check(t, b)
		require.Equal(t, accounts[i]["accountId"], b["accountId"])
	}
	for _, id := range []string{ordinary, deposit} {
		status, answer = apiCall(t, s, token, "GET", "/accounts/balances?accountId="+id, "")
		require.Equal(t, 200, status)
		balances := list(t, answer["balances"])
		require.Len(t, balances, 1)
		require.Equal(t, id, balances[0]["accountId"])
	}
	status, answer = apiCall(t, s, token, "GET", "/accounts/balances?accountId=", "")
	require.Equal(t, 200, status)
	require.Len(t, answer["balances"], 2, "an empty parameter is as good as none")

	status, answer = apiCall(t, s, token, "POST", "/transfer/request", `{"accountId":"`+ordinary+`"}`)
	require.Equal(t, 201, status)
	transferFields.check(t, answer)

	for _, request := range []string{
		"GET /accounts/balances?accountId=123456789012", "GET /accounts/balances?accountId=1", "GET /accounts/balances?accountId=" + strings.Repeat("1", 30),
		"GET /accounts/balances?accountId=" + ordinary + "&accountId=" + deposit, "GET /accounts/balances?%zz",
		"GET /accounts/transactions", "GET /accounts/transactions?accountId=" + deposit,
		"GET /accounts/transactions?dateFrom=2026-1-1&accountId=" + ordinary, "GET /accounts/transactions?dateTo=yesterday&accountId=" + ordinary,
		"GET /accounts/transactions?dateFrom=2026-11-02&dateTo=2026-11-01&accountId=" + ordinary,
		"GET /accounts/transactions?nextItemKey=x&accountId=" + ordinary, "GET /accounts/transactions?nextItemKey=" + strings.Repeat("1", 25) + "&accountId=" + ordinary,
		"POST /transfer/request [", `POST /transfer/request {"accountId":"` + deposit + `"}`, `POST /transfer/request {"accountId":1}`,
	} {
		method, path, _ := strings.Cut(request, " ")
		path, body, _ := strings.Cut(path, " ")
		status, answer := apiCall(t, s, token, method, path, body)
		require.Equal(t, 400, status, request)
		require.Equal(t, "WG_ERR_110", answer["errorCode"], request)
		errorFields.check(t, answer)
	}
}

// The bank knows a user's Idempotency-Key for 24 hours.
func TestIdempotencyKeys(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true, Lifetime: 48 * time.Hour, Now: func() time.Time { return now }})
	one, another := s.Token("private:account"), s.Token("private:account")
	number := func(token *ganbauth.Token, key string) any {
		req, err := http.NewRequest("POST", s.APIBase()+"/transfer/request", strings.NewReader("{}"))
		require.NoError(t, err)
		req.Header.Set("x-access-token", token.AccessToken)
		req.Header.Set("Idempotency-Key", key)
		_, answer := apiAnswer(t, s, req)
		return answer["applyNo"]
	}
	first := number(one, "k")
	require.NotEqual(t, first, number(another, "k"))
	require.NotEqual(t, number(one, ""), number(one, ""))
	now = now.Add(24*time.Hour - 1)
	require.Equal(t, first, number(one, "k"))
	now = now.Add(1)
	second := number(one, "k")
	require.NotEqual(t, first, second)
	require.Equal(t, second, number(one, "k"))
}

func TestTransactions(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.FixedZone("", 9*60*60))
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true, Subject: "u", Now: func() time.Time { return now }})
	token := s.Token("private:account", "offline_access")
	_, answer := apiCall(t, s, token, "GET", "/accounts/balances", "")
	balance := list(t, answer["balances"])[0]
	account := balance["accountId"].(string)
	get := func(query string) (page map[string]any, transactions []map[string]any) {
		t.Helper()
		status, page := apiCall(t, s, token, "GET", "/accounts/transactions?accountId="+account+query, "")
		require.Equal(t, 200, status)
		transactions = list(t, page["transactions"])
		require.Equal(t, strconv.Itoa(len(transactions)), page["count"])
		require.Equal(t, page["hasNext"], page["nextItemKey"] != nil)
		header := map[string]any{}
		for name, value := range page {
			if name != "hasNext" && name != "transactions" {
				header[name] = value
			}
		}
		transactionsFields.check(t, header)
		for _, transaction := range transactions {
			transactionFields.check(t, transaction)
		}
		return page, transactions
	}

	page, transactions := get("")
	require.Equal(t, "2026-11-27", page["dateFrom"])
	require.Equal(t, "2026-11-27", page["dateTo"])
	require.Len(t, transactions, 1, "today's")
	require.Equal(t, balance["balance"], transactions[0]["balance"])

	page, transactions = get("&dateFrom=2026-10-01&dateTo=2026-10-31")
	require.Equal(t, "2026-10-01", page["dateFrom"])
	require.Len(t, transactions, 4)
	require.Equal(t, balance["previousMonthBalance"], transactions[3]["balance"])
	page, transactions = get("&dateFrom=2026-11-25")
	require.Equal(t, "2026-11-27", page["dateTo"])
	require.Len(t, transactions, 2)
	require.Equal(t, balance["previousDayBalance"], transactions[0]["balance"])
	require.Equal(t, "1", transactions[0]["transactionType"])
	require.Equal(t, "2", transactions[1]["transactionType"])

	var all []map[string]any
	for key := ""; ; {
		page, transactions := get("&dateTo=2026-11-27&nextItemKey=" + key)
		all = append(all, transactions...)
		if page["hasNext"] == false {
			break
		}
		require.Len(t, transactions, 500)
		key = page["nextItemKey"].(string)
	}
	require.Greater(t, len(all), 1000)
	running := 500_000
	for i, transaction := range all {
		amount, err := strconv.Atoi(transaction["amount"].(string))
		require.NoError(t, err)
		if transaction["transactionType"] == "2" {
			amount = -amount
		}
		running += amount
		require.Equal(t, strconv.Itoa(running), transaction["balance"], "transaction %d", i)
		require.Positive(t, running)
	}
	require.Equal(t, balance["balance"], all[len(all)-1]["balance"])

	now = now.AddDate(0, 0, 1)
	token = s.Token("private:account")
	_, transactions = get("")
	require.Empty(t, transactions, "on the next day")
}

// The API works at the time at which a bubble begins.
func TestAccountsInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ganbtest.NewServer(ganbtest.Options{InProcess: true})
		_, answer := apiCall(t, s, s.Token(), "GET", "/accounts/balances", "")
		for _, b := range list(t, answer["balances"]) {
			balanceFields.check(t, b)
		}
	})
}

// The application's own API stands behind the box's token check, rate limit and faults.
func TestOwnAPI(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /accounts/visa-transactions", func(w http.ResponseWriter, r *http.Request) {
		g, ok := ganbtest.GrantFromContext(r.Context())
		w.Header().Set("X-Seen", r.RequestURI)
		w.WriteHeader(http.StatusAccepted)
		w.WriteHeader(http.StatusTeapot) // ignored, as by net/http
		fmt.Fprintln(w, g.Subject, ok, g.Scopes)
	})
	mux.HandleFunc("POST /big", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	mux.HandleFunc("GET /accounts/balances", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "instead of the box's") })
	both(t, ganbtest.Options{API: mux, Subject: "u"}, func(t *testing.T, s *ganbtest.Server) {
		token := s.Token("openid", "private:account")
		do := func(method, base, path, body string) (int, string, http.Header) {
			t.Helper()
			req, err := http.NewRequest(method, base+path, strings.NewReader(body))
			require.NoError(t, err)
			req.Header.Set("x-access-token", token.AccessToken)
			resp, err := s.Client().Do(req)
			require.NoError(t, err)
			defer resp.Body.Close()
			data, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(data), resp.Header
		}
		status, body, header := do("GET", s.APIBase(), "/accounts/visa-transactions?a=b", "")
		require.Equal(t, 202, status)
		require.Equal(t, "u true [openid private:account]\n", body)
		base, err := url.Parse(s.APIBase())
		require.NoError(t, err)
		require.Equal(t, base.Path+"/accounts/visa-transactions?a=b", header.Get("X-Seen"))
		corporation := strings.Replace(s.APIBase(), "personal", "corporation", 1)
		status, _, _ = do("GET", corporation, "/accounts/visa-transactions", "")
		require.Equal(t, 202, status)
		_, body, _ = do("GET", s.APIBase(), "/accounts/balances", "")
		require.Equal(t, "instead of the box's", body)
		_, body, _ = do("POST", s.APIBase(), "/big", strings.Repeat("x", 1<<20))
		require.Equal(t, "1048576 <nil>", body)

		status, body, _ = do("GET", s.APIBase(), "/accounts", "")
		require.Equal(t, 200, status)
		require.Contains(t, body, `"accountId":"`, "the box's own")
		status, body, _ = do("GET", s.APIBase(), "/unknown", "")
		require.Equal(t, 405, status)
		require.Contains(t, body, "WG_ERR_019")

		s.Fail(ganbtest.API, ganbtest.Maintenance, 1)
		status, _, _ = do("GET", s.APIBase(), "/accounts/visa-transactions", "")
		require.Equal(t, 503, status)
		s.ExpireAccessTokens()
		for _, path := range []string{"/accounts/visa-transactions", "/accounts", "/unknown"} {
			status, body, _ = do("GET", s.APIBase(), path, "")
			require.Equal(t, 401, status, path)
			require.Contains(t, body, "WG_ERR_105")
		}
	})
	_, ok := ganbtest.GrantFromContext(t.Context())
	require.False(t, ok)
}
