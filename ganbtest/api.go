package ganbtest

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"strconv"
	"time"
)

func (s *Server) userInfo(w http.ResponseWriter, r *http.Request) {
	g := s.granted(bearer(r))
	if g == nil {
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		writeAPIError(w, http.StatusUnauthorized, "WG_ERR_105", "The access token is not valid.")
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"sub": g.subject, "iss": s.issuer()})
}

func (s *Server) withAccess(next func(http.ResponseWriter, *http.Request, *grant)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		g := s.granted(r.Header.Get("X-Access-Token"))
		if g == nil {
			writeAPIError(w, http.StatusUnauthorized, "WG_ERR_105", "The access token is not valid.")
			return
		}
		next(w, r, g)
	}
}

type account struct {
	AccountID       string `json:"accountId"`
	BranchCode      string `json:"branchCode"`
	BranchName      string `json:"branchName"`
	AccountTypeName string `json:"accountTypeName"`
	AccountNumber   string `json:"accountNumber"`
	AccountName     string `json:"accountName"`
	CurrencyCode    string `json:"currencyCode"`
}

type balance struct {
	AccountID          string `json:"accountId"`
	AccountTypeName    string `json:"accountTypeName"`
	Balance            string `json:"balance"`
	WithdrawableAmount string `json:"withdrawableAmount"`
	BaseDate           string `json:"baseDate"`
	BaseTime           string `json:"baseTime"`
	PreviousDayBalance string `json:"previousDayBalance"`
}

// accountsOf makes up two accounts that are always the same for one subject.
func accountsOf(subject string) (accounts []account, balances []balance) {
	sum := sha256.Sum256([]byte(subject))
	for i, kind := range []string{"普通預金（有利息）", "定期預金"} {
		number := new(big.Int).SetBytes(sum[i*8:i*8+4]).Int64()%9_000_000 + 1_000_000
		id := fmt.Sprintf("30101%d%07d", i, number)
		accounts = append(accounts, account{
			id, "301", "ビジネス営業部", kind, fmt.Sprintf("%07d", number), "サンドボックス　タロウ", "JPY",
		})
		amount := strconv.FormatInt(new(big.Int).SetBytes(sum[16+i*4:20+i*4]).Int64()%5_000_000+10_000, 10)
		balances = append(balances, balance{AccountID: id, AccountTypeName: kind,
			Balance: amount, WithdrawableAmount: amount, PreviousDayBalance: amount})
	}
	return accounts, balances
}

func (s *Server) accounts(w http.ResponseWriter, _ *http.Request, g *grant) {
	accounts, _ := accountsOf(g.subject)
	now := s.opts.Now()
	writeJSON(w, http.StatusOK, map[string]any{
		"baseDate": now.Format(time.DateOnly), "baseTime": now.Format("15:04:05-07:00"), "accounts": accounts,
	})
}

func (s *Server) balances(w http.ResponseWriter, _ *http.Request, g *grant) {
	_, balances := accountsOf(g.subject)
	now := s.opts.Now()
	for i := range balances {
		balances[i].BaseDate, balances[i].BaseTime = now.Format(time.DateOnly), now.Format("15:04:05-07:00")
	}
	writeJSON(w, http.StatusOK, map[string]any{"balances": balances})
}

func (s *Server) transferRequest(w http.ResponseWriter, r *http.Request, g *grant) {
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		writeAPIError(w, http.StatusBadRequest, "WG_ERR_110", "A parameter is not valid.")
		return
	}
	key := r.Header.Get("Idempotency-Key")
	s.mu.Lock()
	number, again := s.transfer[key]
	if !again || key == "" {
		number = strconv.Itoa(2018_0000_0000_0000 + len(s.transfer) + 1)
		s.transfer[key] = number
	}
	s.mu.Unlock()
	accounts, _ := accountsOf(g.subject)
	writeJSON(w, http.StatusCreated, map[string]any{
		"accountId": accounts[0].AccountID, "resultCode": "2", "applyNo": number,
	})
}
