package ganbauth

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"html/template"
	"net/http"
	"time"
)

// ErrorPage is what the kit tells a person whose request was not served. The template of
// [Options] ErrorPage is executed with a pointer to one. It contains no secrets, no text
// of the bank's, and nothing of the request but paths to link to.
type ErrorPage struct {
	// Status is the HTTP status of the answer, [StatusCode] of the error.
	Status int
	// Code is a stable word for what happened, the code of problem details. [Kit.Refuse]
	// lists them.
	Code string
	// Language is "ja" or "en", by the request's Accept-Language. The default is "en".
	Language string
	// Title and Text say what happened and what the user can do. They are in Language.
	Title, Text string
	// Links lead on: first to the page where the user can try again, if there is one, and
	// last to Options.DefaultReturn.
	Links []ErrorPageLink
	// RetryAfter is how long to wait before trying again, or 0 if waiting does not help.
	// The header Retry-After is set already.
	RetryAfter time.Duration
}

// ErrorPageLink is a link of an [ErrorPage].
type ErrorPageLink struct {
	// Label is the text of the link, in the page's Language.
	Label string
	// URL is a path of this site.
	URL string
}

// situation is what the user was doing when an error occurred. The words depend on it.
type situation int

const (
	usingPage    situation = iota // using a page behind RequireToken, or logging out
	connecting                    // connecting for the first time
	reconnecting                  // connecting again, while an earlier connection goes on
)

// setting is what a page depends on besides the error.
type setting struct {
	doing    situation
	again    string // where the user can try again; "" if nowhere
	sentFrom bool   // again is the page that sent a form
	home     string // DefaultReturn; "" for a Kit that New did not make
}

// newErrorPage makes the page for err.
func newErrorPage(err error, in setting, japanese bool) ErrorPage {
	about := kindOf(err)
	words := wordsFor(about.topic, in.doing, japanese)
	page := ErrorPage{
		Status:     about.status,
		Code:       string(about.topic),
		Language:   "en",
		Title:      words.title,
		Text:       words.text,
		RetryAfter: retryAfter(err),
	}
	home, back := "Back to the site", "Back to the previous page"
	if japanese {
		page.Language = "ja"
		home, back = "サイトに戻る", "前のページに戻る"
	}
	if in.sentFrom && words.again != "" {
		words.again = back
	}
	if in.again != "" && words.again != "" {
		page.Links = append(page.Links, ErrorPageLink{words.again, in.again})
	}
	if in.home != "" && (len(page.Links) == 0 || in.home != in.again) {
		page.Links = append(page.Links, ErrorPageLink{home, in.home})
	}
	return page
}

// reloadPage makes the page that is shown while the browser requests path again.
func reloadPage(path string, japanese bool) ErrorPage {
	if japanese {
		return ErrorPage{http.StatusOK, "", "ja", "少々お待ちください", "ページを読み込んでいます。",
			[]ErrorPageLink{{"続ける", path}}, 0}
	}
	return ErrorPage{http.StatusOK, "", "en", "One moment, please", "The page is loading.",
		[]ErrorPageLink{{"Continue", path}}, 0}
}

// writeOwnPage writes page in the kit's own design. Only this page gets the content
// security policy, which allows what it needs and nothing else.
func writeOwnPage(w http.ResponseWriter, page ErrorPage) {
	w.Header().Set("Content-Security-Policy", ownPagePolicy)
	_ = writePage(w, ownPage, page)
}

// writePage executes t with page. If t fails, it writes nothing.
func writePage(w http.ResponseWriter, t *template.Template, page ErrorPage) error {
	var b bytes.Buffer
	if err := t.Execute(&b, &page); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Language", page.Language)
	w.WriteHeader(page.Status)
	_, _ = w.Write(b.Bytes())
	return nil
}

const pageStyle = `:root{color-scheme:light dark}` +
	`body{margin:0;font:1rem/1.75 system-ui,sans-serif;word-break:auto-phrase;color:#1c2430;background:#f3f5f8}` +
	`main{box-sizing:border-box;max-width:34rem;margin:14vh auto 2rem;padding:2.25rem 2.5rem;border-radius:1rem;background:#fff;` +
	`box-shadow:0 1px 3px #1c243026}` +
	`h1{font-size:1.5rem;line-height:1.35;margin:0 0 .75rem;text-wrap:balance}p{margin:0 0 1.75rem}` +
	`nav{display:flex;flex-wrap:wrap;gap:.5rem 1.5rem;align-items:center}` +
	`a{padding:.6rem 0;color:#0b5cad;text-underline-offset:.2em}` +
	`a:first-child{padding:.6rem 1.4rem;border-radius:.5rem;background:#0b5cad;color:#fff;text-decoration:none}` +
	`a:focus-visible{outline:3px solid #6aa5e8;outline-offset:3px;border-radius:.5rem}` +
	`.soon{animation:soon 0s .7s backwards}@keyframes soon{from{opacity:0}}` + // a page that is gone by then shows nothing
	`@media(max-width:36rem){body{background:#fff}main{margin:8vh 0 2rem;padding:0 1.5rem;box-shadow:none}}` +
	`@media(prefers-color-scheme:dark){body,main{color:#e6e9ee;background:#12161d}main{box-shadow:none}a{color:#8fc1f7}` +
	`a:first-child{background:#2467ae}` +
	`@media(min-width:36.01rem){main{background:#1b212b}}}`

var (
	ownPagePolicy = func() string {
		sum := sha256.Sum256([]byte(pageStyle))
		return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
			"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	}()
	ownPage = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="{{.Language}}">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{{.Title}}</title>
<style>` + pageStyle + `</style>
<main{{if eq .Status 200}} class="soon"{{end}}>
<h1>{{.Title}}</h1>
<p>{{.Text}}</p>
{{with .Links}}<nav>{{range .}}<a href="{{.URL}}">{{.Label}}</a>{{end}}</nav>
{{end}}</main>
</html>
`))
)

// words is the text of a page in one language. again labels the link to try again; it is
// "" if no link helps.
type words struct{ title, text, again string }

// message is the text of a page in both languages.
type message struct{ ja, en words }

// wordsFor returns the situation's words about a topic or, if it has none, the general
// ones.
func wordsFor(about topic, s situation, japanese bool) words {
	m, ok := situationMessages[s][about]
	if !ok {
		m = messages[about]
	}
	if japanese {
		return m.ja
	}
	return m.en
}

// messages has a message for each topic.
var messages = map[topic]message{
	topicConnect: {
		words{"銀行口座との連携が必要です", "このページを使うには、銀行口座を連携してください。", "連携する"},
		words{"Connect your bank account", "This page needs a connection to your bank account.", "Connect"},
	},
	topicScope: {
		words{"追加の許可が必要です", "この操作には、銀行の画面での追加の許可が必要です。", "銀行の画面へ進む"},
		words{"More permission is needed", "This page needs a permission that you have not yet given at the bank.", "Continue to the bank"},
	},
	topicNoUser: {
		words{"ログインが必要です", "先にこのサイトにログインしてから、もう一度ページを開いてください。", ""},
		words{"Please log in first", "Log in to this site, then open the page again.", ""},
	},
	topicDenied: {
		words{"連携が許可されませんでした", "銀行の画面で許可されなかったため、口座は連携されていません。", "もう一度連携する"},
		words{"Not connected", "You did not approve the connection at the bank, so nothing was connected.", "Connect again"},
	},
	topicExpired: {
		words{"連携手続きの時間切れです", "手続きを始めてから10分以上たったため、続けられません。もう一度はじめからお願いします。", "もう一度連携する"},
		words{"Your request to connect has expired", "You started it more than ten minutes ago. Please start again.", "Start again"},
	},
	topicState: {
		words{"連携を完了できません", "連携手続きがすでに終わっているか、別のブラウザーで始められたものです。Cookieが有効になっているかもご確認ください。", "もう一度連携する"},
		words{"We couldn't finish connecting your account", "The link has expired, or it was opened in a different browser. Please also check that cookies are allowed.", "Start again"},
	},
	topicRequest: {
		words{"この操作を受け付けられませんでした", "前のページに戻って、もう一度お試しください。", "もう一度試す"},
		words{"Something went wrong with this request", "Please go back and try again.", "Try again"},
	},
	topicBankAway: {
		words{"ただいま銀行と通信できません", "口座との連携はそのまま維持されています。しばらくしてからもう一度お試しください。", "もう一度試す"},
		words{"The bank is not available right now", "Your account stays connected. Please try again in a little while.", "Try again"},
	},
	topicUnavailable: {
		words{"ただいまサイト側で処理できません", "しばらくしてからもう一度お試しください。", "もう一度試す"},
		words{"This site is temporarily unavailable", "Please try again in a little while.", "Try again"},
	},
	topicBankError: {
		words{"銀行との通信で問題が発生しました", "銀行からの応答を処理できませんでした。しばらくしてからもう一度お試しください。", "もう一度試す"},
		words{"Something went wrong at the bank", "The bank's answer could not be used. Please try again later.", "Try again"},
	},
	topicSetup:    siteProblem,
	topicInternal: siteProblem,
}

var siteProblem = message{
	words{"サイト側で問題が発生しました", "しばらくしてからもう一度お試しください。", "もう一度試す"},
	words{"Something went wrong on our side", "Please try again later.", "Try again"},
}

// situationMessages has the messages for situations in which the general one would be
// untrue.
var situationMessages = map[situation]map[topic]message{
	connecting: {
		topicBankAway: {
			words{"ただいま銀行と通信できません", "口座の連携を完了できませんでした。しばらくしてからもう一度お試しください。", "もう一度連携する"},
			words{"The bank is not available right now", "We couldn't connect your account. Please try again in a little while.", "Start again"},
		},
		topicUnavailable: {
			words{"ただいまサイト側で処理できません", "口座の連携を完了できませんでした。しばらくしてからもう一度お試しください。", "もう一度連携する"},
			words{"This site is temporarily unavailable", "We couldn't finish connecting your account. Please try again in a little while.", "Start again"},
		},
		topicBankError: {
			words{"連携を完了できませんでした", "銀行からの応答を確認できなかったため、口座は連携されていません。", "もう一度連携する"},
			words{"We couldn't connect your account", "The bank's answer could not be verified, so nothing was connected.", "Start again"},
		},
		topicSetup: {
			words{"サイト側で問題が発生しました", "口座を連携できませんでした。しばらくしてからもう一度お試しください。", "もう一度連携する"},
			words{"Something went wrong on our side", "We couldn't connect your account. Please try again later.", "Start again"},
		},
		topicInternal: {
			words{"サイト側で問題が発生しました", "口座の連携を完了できませんでした。しばらくしてからもう一度お試しください。", "もう一度連携する"},
			words{"Something went wrong on our side", "We couldn't finish connecting your account. Please try again later.", "Start again"},
		},
	},
	reconnecting: {
		topicDenied: {
			words{"許可されませんでした", "銀行の画面で許可されなかったため、変更はありません。口座との連携はそのまま維持されています。", "もう一度試す"},
			words{"Nothing has changed", "You did not approve the request at the bank. Your account stays connected as before.", "Try again"},
		},
		topicExpired: {
			words{"連携手続きの時間切れです", "手続きを始めてから10分以上たったため、続けられません。口座との連携はそのまま維持されています。", "もう一度試す"},
			words{"Your request to connect has expired", "You started it more than ten minutes ago. Your account stays connected as before.", "Start again"},
		},
		topicBankAway: {
			words{"ただいま銀行と通信できません", "手続きを完了できませんでした。口座との連携はそのまま維持されています。しばらくしてからもう一度お試しください。", "もう一度試す"},
			words{"The bank is not available right now", "We couldn't finish your request. Your account stays connected as before. Please try again in a little while.", "Try again"},
		},
		topicBankError: {
			words{"手続きを完了できませんでした", "銀行からの応答を確認できませんでした。口座との連携はそのまま維持されています。", "もう一度試す"},
			words{"We couldn't finish your request", "The bank's answer could not be verified. Your account stays connected as before.", "Try again"},
		},
		topicSetup: {
			words{"サイト側で問題が発生しました", "手続きを完了できませんでした。口座との連携はそのまま維持されています。", "もう一度試す"},
			words{"Something went wrong on our side", "We couldn't finish your request. Your account stays connected as before.", "Try again"},
		},
	},
}
