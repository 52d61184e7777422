package ganbtest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"time"
)

// account is one account in the answer to /accounts. What a kind of account does not have
// is left out.
type account struct {
	AccountID              string `json:"accountId"`
	BranchCode             string `json:"branchCode,omitempty"`
	BranchName             string `json:"branchName,omitempty"`
	AccountTypeCode        string `json:"accountTypeCode"`
	AccountTypeName        string `json:"accountTypeName"`
	AccountNumber          string `json:"accountNumber,omitempty"`
	PrimaryAccountCode     string `json:"primaryAccountCode,omitempty"`
	PrimaryAccountCodeName string `json:"primaryAccountCodeName,omitempty"`
	AccountName            string `json:"accountName,omitempty"`
	AccountNameKana        string `json:"accountNameKana,omitempty"`
	CurrencyCode           string `json:"currencyCode"`
	CurrencyName           string `json:"currencyName"`
	TransferLimitAmount    string `json:"transferLimitAmount,omitempty"`
}

type balance struct {
	AccountID            string `json:"accountId"`
	AccountTypeCode      string `json:"accountTypeCode"`
	AccountTypeName      string `json:"accountTypeName"`
	Balance              string `json:"balance"`
	BaseDate             string `json:"baseDate"`
	BaseTime             string `json:"baseTime"`
	WithdrawableAmount   string `json:"withdrawableAmount,omitempty"`
	PreviousDayBalance   string `json:"previousDayBalance,omitempty"`
	PreviousMonthBalance string `json:"previousMonthBalance,omitempty"`
	CurrencyCode         string `json:"currencyCode"`
	CurrencyName         string `json:"currencyName"`
}

type transaction struct {
	TransactionDate string `json:"transactionDate"`
	ValueDate       string `json:"valueDate"`
	TransactionType string `json:"transactionType"` // 1 is a deposit, 2 a withdrawal
	Amount          string `json:"amount"`
	Remarks         string `json:"remarks"`
	Balance         string `json:"balance"`
	ItemKey         string `json:"itemKey"`
}

var (
	japan  = time.FixedZone("JST", 9*60*60)
	opened = time.Date(1999, 1, 1, 0, 0, 0, 0, japan) // before the time at which a synctest bubble begins
)

func date(t time.Time) string  { return t.Format(time.DateOnly) }
func clock(t time.Time) string { return t.Format("15:04:05-07:00") }

// books are one user's accounts: a yen ordinary account with its transactions, and a time
// deposit. They are made up from the subject, so that a user finds the same ones at every
// bank in a box.
type books struct {
	seed     [sha256.Size]byte
	accounts [2]account
	deposit  int
}

// booksOf returns the accounts of a user. They depend on the subject alone, so a user has
// the same ones after each login.
func booksOf(subject string) (b books) {
	b.seed = sha256.Sum256([]byte(subject))
	number := fmt.Sprintf("%07d", 1_000_000+b.number("account", 9_000_000))
	b.deposit = 10_000 * (10 + b.number("deposit", 490))
	b.accounts = [2]account{{
		AccountID:       "10101" + number,
		BranchCode:      "101",
		BranchName:      "法人営業部",
		AccountTypeCode: "01", AccountTypeName: "普通預金（有利息）",
		AccountNumber:      number,
		PrimaryAccountCode: "1", PrimaryAccountCodeName: "代表口座",
		AccountName: "サンドボックス　タロウ", AccountNameKana: "ｻﾝﾄﾞﾎﾞﾂｸｽ ﾀﾛｳ",
		CurrencyCode: "JPY", CurrencyName: "円",
		TransferLimitAmount: "1000000",
	}, {
		AccountID:       "10111" + number,
		AccountTypeCode: "11", AccountTypeName: "円定期預金",
		CurrencyCode: "JPY", CurrencyName: "円",
	}}
	return b
}

// number returns what these books have under that name, from 0 to limit-1.
func (b books) number(name string, limit uint64) int {
	sum := sha256.Sum256(append(b.seed[:], name...))
	return int(binary.BigEndian.Uint64(sum[:8]) % limit)
}

// balances returns both balances as of now.
func (b books) balances(now time.Time) []balance {
	today := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, japan)
	at := func(t time.Time) string {
		if past := b.transactions(t); len(past) > 0 {
			return past[len(past)-1].Balance
		}
		return "0"
	}
	balances := make([]balance, len(b.accounts))
	for i, a := range b.accounts {
		balances[i] = balance{
			AccountID: a.AccountID, AccountTypeCode: a.AccountTypeCode, AccountTypeName: a.AccountTypeName,
			Balance: strconv.Itoa(b.deposit), BaseDate: date(now), BaseTime: clock(now),
			CurrencyCode: a.CurrencyCode, CurrencyName: a.CurrencyName,
		}
	}
	ordinary := &balances[0]
	ordinary.Balance = at(now)
	ordinary.WithdrawableAmount = ordinary.Balance
	ordinary.PreviousDayBalance = at(today.Add(-1))
	ordinary.PreviousMonthBalance = at(today.AddDate(0, 0, 1-now.Day()).Add(-1))
	return balances
}

// monthly is what happens on the ordinary account in every month. The amounts vary by up
// to spread.
var monthly = []struct {
	day, amount, spread int
	remarks             string
}{
	{5, -30_000, 20_000, "ＡＴＭ出金"},
	{10, -60_000, 60_000, "カード　サンドカード"},
	{25, 185_000, 40_000, "給与　カ）サンドボックス"},
	{27, -80_000, 0, "口座振替　ヤチン"},
}

// transactions returns what has happened on the ordinary account until now, the oldest
// first.
func (b books) transactions(now time.Time) (all []transaction) {
	balance := 500_000
	for month := opened; !month.After(now); month = month.AddDate(0, 1, 0) {
		for _, m := range monthly {
			at := month.AddDate(0, 0, m.day-1).Add(9 * time.Hour)
			if at.After(now) {
				break
			}
			amount, kind := m.amount, "1"
			if m.spread > 0 {
				amount += b.number(date(at), uint64(m.spread)) - m.spread/2
			}
			balance += amount
			if amount < 0 {
				amount, kind = -amount, "2"
			}
			all = append(all, transaction{
				TransactionDate: date(at), ValueDate: date(at), TransactionType: kind, Amount: strconv.Itoa(amount),
				Remarks: m.remarks, Balance: strconv.Itoa(balance), ItemKey: strconv.FormatInt(at.UnixMicro(), 10),
			})
		}
	}
	return all
}
