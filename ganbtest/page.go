package ganbtest

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"
)

// words are what the bank's pages say in one language. Consent has a place for the
// application's name.
type words struct {
	Lang, Bank, Note        string
	Consent, Choose         string
	Approve, Deny           string
	named, nameless         string // the application
	scopes                  map[string]string
	refused                 string // the title of an error
	unregistered, malformed string
	closed, maintenance     string // with a place for the end
}

var english = words{
	Lang: "en", Bank: "Sandbox bank", Note: "This is the bank in a box: no real account, no real money.",
	Consent: "%s asks for access to your account", Choose: "Choose what it may do.",
	Approve: "Approve", Deny: "Deny",
	named: "%s", nameless: "An application",
	scopes: map[string]string{
		"openid":          "Know who you are at the bank",
		"account":         "See your accounts, balances and transactions",
		"transfer":        "Request transfers from your account",
		"bulk-transfer":   "Request bulk transfers from your account",
		"virtual-account": "Issue and see virtual accounts for incoming transfers",
		"offline_access":  "Keep the connection while you are away",
		"":                "A permission without a description",
	},
	refused:      "This request cannot be served",
	unregistered: "The client or its redirect_uri is not registered.",
	malformed:    "The request is malformed.",
	closed:       "The bank is under maintenance", maintenance: "It will be back at %s (Japan time).",
}

var inJapanese = words{
	Lang: "ja", Bank: "サンドボックス銀行", Note: "テスト用の銀行です。実際の口座やお金は扱いません。",
	Consent: "%sが口座へのアクセスを求めています", Choose: "許可する内容を選んでください。",
	Approve: "許可する", Deny: "許可しない",
	named: "「%s」", nameless: "アプリケーション",
	scopes: map[string]string{
		"openid":          "ご本人の確認",
		"account":         "口座情報、残高、入出金明細の照会",
		"transfer":        "振込・振替の依頼",
		"bulk-transfer":   "総合振込の依頼",
		"virtual-account": "振込入金口座の発行と照会",
		"offline_access":  "操作していない間の連携の継続",
		"":                "説明のない権限",
	},
	refused:      "このリクエストは受け付けられません",
	unregistered: "クライアントまたはredirect_uriが登録されていません。",
	malformed:    "リクエストの形式が正しくありません。",
	closed:       "ただいまメンテナンス中です", maintenance: "終了予定は%s（日本時間）です。",
}

// wordsFor returns the words in the language that the browser lists first: Japanese, or
// else English.
func wordsFor(r *http.Request) words {
	for tag := range strings.SplitSeq(strings.ToLower(r.Header.Get("Accept-Language")), ",") {
		switch tag = strings.TrimSpace(tag); {
		case strings.HasPrefix(tag, "ja"):
			return inJapanese
		case strings.HasPrefix(tag, "en"):
			return english
		}
	}
	return english
}

// scope is one line of the consent page.
type scope struct{ Name, Words string }

// describe says what a scope allows. The part before a colon is the kind of contract.
func (w words) describe(name string) scope {
	kind := name[strings.LastIndexByte(name, ':')+1:]
	if text, ok := w.scopes[kind]; ok && kind != "" {
		return scope{name, text}
	}
	return scope{name, w.scopes[""]}
}

// page is one of the bank's pages. Scopes make it the consent page.
type page struct {
	words
	Title, Text string
	Scopes      []scope
	Query       string
}

func consentPage(w words, application string, scopes []string, query string) page {
	who := w.nameless
	if application != "" {
		who = fmt.Sprintf(w.named, application)
	}
	p := page{words: w, Title: fmt.Sprintf(w.Consent, who), Text: w.Choose, Query: query}
	for _, name := range scopes {
		p.Scopes = append(p.Scopes, w.describe(name))
	}
	return p
}

// maintenancePage is the page of a bank that is closed until then.
func maintenancePage(w words, end time.Time) page {
	return page{words: w, Title: w.closed, Text: fmt.Sprintf(w.maintenance, end.In(japan).Format("2006-01-02 15:04"))}
}

var (
	//go:embed page.css
	style string
	//go:embed page.html
	pageText     string
	pageTemplate = template.Must(template.New("page").Parse(pageText))
	pagePolicy   = func() string {
		sum := sha256.Sum256([]byte(style))
		return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
			"'; base-uri 'none'; frame-ancestors 'none'"
	}()
)

func (page) Style() template.CSS { return template.CSS(style) }

// write answers with the page. A form's answer leads to the application, so the policy
// sets no form-action.
func (p page) write(w http.ResponseWriter, status int) {
	var b bytes.Buffer
	must(pageTemplate.Execute(&b, p))
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Language", p.Lang)
	w.Header().Set("Vary", "Accept-Language")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Security-Policy", pagePolicy)
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}
