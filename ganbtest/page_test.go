package ganbtest_test

import (
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth/ganbtest"
)

// visit opens a page with these languages, and follows no redirect.
func visit(t *testing.T, s *ganbtest.Server, target, languages string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("GET", target, nil)
	require.NoError(t, err)
	req.Header.Set("Accept-Language", languages)
	resp, err := s.Client().Transport.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(body)
}

func TestConsentPage(t *testing.T) {
	both(t, ganbtest.Options{Consent: true, Application: `<b>帳簿 & Co</b>`}, func(t *testing.T, s *ganbtest.Server) {
		target := authURL(t, s, `openid private:account corp:bulk-transfer a"><script>`)
		for languages, lang := range map[string]string{
			"": "en", "ja": "ja", "ja-JP,ja;q=0.9,en;q=0.8": "ja", "en-US,en;q=0.9,ja;q=0.8": "en", "fr, JA;q=0.5": "ja", "de": "en",
		} {
			resp, page := visit(t, s, target, languages)
			require.Equal(t, 200, resp.StatusCode)
			require.Equal(t, lang, resp.Header.Get("Content-Language"), languages)
			require.Contains(t, page, `<html lang="`+lang+`">`)
			require.Contains(t, page, "&lt;b&gt;帳簿 &amp; Co&lt;/b&gt;")
			require.NotContains(t, page, "<script")
			require.Contains(t, page, `value="corp:bulk-transfer"`)
			want := []string{"Choose what it may do", "See your accounts", "Request bulk transfers", "without a description", ">Approve<", ">Deny<"}
			if lang == "ja" {
				want = []string{"許可する内容を選んでください", "入出金明細の照会", "総合振込の依頼", "説明のない権限", ">許可する<", ">許可しない<"}
			}
			for _, text := range want {
				require.Contains(t, page, text)
			}
			style := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(page)[1]
			sum := sha256.Sum256([]byte(style))
			policy := resp.Header.Get("Content-Security-Policy")
			require.Contains(t, policy, "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
			require.NotContains(t, policy, "form-action", "the form's answer leads to the application")
		}
	})
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true, Consent: true})
	_, page := visit(t, s, authURL(t, s, "a"), "en")
	require.Contains(t, page, "<h1>An application asks")
	_, page = visit(t, s, authURL(t, s, "a"), "ja")
	require.Contains(t, page, "<h1>アプリケーションが")
}

func TestPagesOfTrouble(t *testing.T) {
	now := time.Date(2026, 11, 24, 15, 30, 0, 0, time.UTC)
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true, RedirectURI: callback, Now: func() time.Time { return now }})
	target := authURL(t, s, "a")
	elsewhere := strings.Replace(target, url.QueryEscape(callback), url.QueryEscape("https://evil.example/"), 1)
	for languages, text := range map[string]string{"en": "redirect_uri is not registered", "ja": "redirect_uriが登録されていません"} {
		resp, page := visit(t, s, elsewhere, languages)
		require.Equal(t, 400, resp.StatusCode)
		require.Contains(t, page, text)
	}
	s.SetMaintenance(ganbtest.Window{Start: now, End: now.Add(time.Hour)})
	for languages, text := range map[string]string{"en": "back at 2026-11-25 01:30 (Japan time)", "ja": "終了予定は2026-11-25 01:30（日本時間）"} {
		resp, page := visit(t, s, target, languages)
		require.Equal(t, 503, resp.StatusCode)
		require.Equal(t, "3600", resp.Header.Get("Retry-After"))
		require.Contains(t, page, text)
	}
}

// The consent page's form says what it is for, and a forged one leads nowhere either.
func TestForgedDecision(t *testing.T) {
	s := ganbtest.NewServer(ganbtest.Options{InProcess: true, Consent: true, RedirectURI: callback + " https://app.example/other"})
	target := authURL(t, s, "a")
	u, err := url.Parse(target)
	require.NoError(t, err)
	decide := func(redirectURI string) *http.Response {
		q := u.Query()
		q.Set("redirect_uri", redirectURI)
		form := url.Values{"query": {q.Encode()}, "decision": {"approve"}, "scope": {"a"}}
		req, err := http.NewRequest("POST", target, strings.NewReader(form.Encode()))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := s.Client().Transport.RoundTrip(req)
		require.NoError(t, err)
		resp.Body.Close()
		return resp
	}
	for _, redirectURI := range []string{callback, "https://app.example/other"} {
		resp := decide(redirectURI)
		require.Equal(t, 302, resp.StatusCode)
		require.True(t, strings.HasPrefix(resp.Header.Get("Location"), redirectURI+"?code="))
	}
	for _, redirectURI := range []string{"https://evil.example/", "", ":", callback + " https://app.example/other"} {
		resp := decide(redirectURI)
		require.Equal(t, 400, resp.StatusCode, redirectURI)
		require.Empty(t, resp.Header.Get("Location"))
	}
}
