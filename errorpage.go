package ganbauth

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"html/template"
	"net/http"
)

// message is what the user is told, in both languages. It holds nothing of the request or of the bank's words.
type message struct{ ja, en words }

type words struct{ Title, Text, Again string }

func messageFor(err error, status int) message {
	var auth *AuthorizationError
	switch {
	case errors.As(err, &auth) && auth.Code == "access_denied":
		return message{
			words{"接続は許可されませんでした", "銀行の画面で許可されなかったため、口座は接続されていません。", "もう一度接続する"},
			words{"Not connected", "You did not approve the connection at the bank, so nothing was connected.", "Connect again"},
		}
	case errors.Is(err, errAttemptExpired):
		return message{
			words{"接続の有効期限が切れました", "接続を始めてから10分以上たったため、続けられません。", "もう一度接続する"},
			words{"The login has expired", "It was begun more than ten minutes ago. Please start again.", "Start again"},
		}
	case errors.Is(err, ErrInvalidState):
		return message{
			words{"接続を完了できません", "この接続はすでに終了しているか、このブラウザーで始めたものではありません。Cookieが有効か確認してください。", "もう一度接続する"},
			words{"The login cannot be completed", "It is over already, or this browser did not begin it. Please check that cookies are allowed.", "Start again"},
		}
	case errors.Is(err, ErrInsufficientScope):
		return message{
			words{"許可が足りません", "このページに必要な許可が銀行で与えられていません。", "許可を追加する"},
			words{"More permission is needed", "This page needs a permission that you have not granted at the bank.", "Grant it"},
		}
	case errors.Is(err, ErrLoginRequired):
		return message{
			words{"銀行口座の接続が必要です", "このページを使うには、銀行口座を接続してください。", "接続する"},
			words{"Connect your bank account", "This page needs a connection to your bank account.", "Connect"},
		}
	case status == http.StatusServiceUnavailable:
		return message{
			words{"ただいま銀行につながりません", "接続は保たれています。しばらくしてからもう一度お試しください。", "もう一度試す"},
			words{"The bank is not available right now", "Your connection is kept. Please try again in a little while.", "Try again"},
		}
	case status == http.StatusBadGateway:
		return message{
			words{"接続を完了できませんでした", "銀行からの応答を確認できなかったため、口座は接続されていません。", "もう一度接続する"},
			words{"The connection failed", "The bank's answer could not be verified, so nothing was connected.", "Start again"},
		}
	case status < 500:
		return message{
			words{"このリクエストは受け付けられません", "ページを開き直してください。", "戻る"},
			words{"This request cannot be served", "Please open the page again.", "Back"},
		}
	}
	return message{
		words{"エラーが発生しました", "設定に問題があります。しばらくしてからもう一度お試しください。", "もう一度試す"},
		words{"Something went wrong", "This site has a problem. Please try again later.", "Try again"},
	}
}

func (m message) write(w http.ResponseWriter, status int, retry string, japanese bool) {
	data := struct {
		words
		Lang, Retry string
	}{m.en, "en", retry}
	if japanese {
		data.words, data.Lang = m.ja, "ja"
	}
	var b bytes.Buffer
	_ = page.Execute(&b, data)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

const pageStyle = `body{font:1rem/1.6 system-ui,sans-serif;max-width:32rem;margin:15vh auto;padding:0 1.5rem;` +
	`color:#1c2430;background:#fff}h1{font-size:1.4rem}a{display:inline-block;padding:.6rem 1.2rem;border-radius:.4rem;` +
	`background:#0b5cad;color:#fff;text-decoration:none}` +
	`@media(prefers-color-scheme:dark){body{color:#e6e9ee;background:#14181f}}`

var (
	pagePolicy = func() string {
		sum := sha256.Sum256([]byte(pageStyle))
		return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
			"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	}()
	page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="{{.Lang}}">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{.Title}}</title>
<style>` + pageStyle + `</style>
<h1>{{.Title}}</h1>
<p>{{.Text}}</p>
{{with .Retry}}<p><a href="{{.}}">{{$.Again}}</a></p>{{end}}
</html>
`))
)
