package main

import (
	"io"
	"net/http"
	"net/url"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth/ganbtest"
)

const site = "https://app.test"

// start returns the application and the browser of a new user.
func start(t *testing.T) (*app, *http.Client) {
	t.Helper()
	box := ganbtest.NewServer(ganbtest.Options{InProcess: true})
	a, err := newApp(bank{box.Connector(), box.APIBase(), box}, site+"/bank/callback", []string{"openid", "offline_access", "private:account"})
	require.NoError(t, err)
	return a, box.Browser(a.routes())
}

// visit sends a form, or opens the page if there is none, and returns where the browser
// ends up, and the text there.
func visit(t *testing.T, browser *http.Client, target string, form url.Values) (at, text string) {
	t.Helper()
	resp, err := browser.Get(target)
	if form != nil {
		resp, err = browser.PostForm(target, form)
	}
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.Request.URL.String(), string(body)
}

// Each of a user's connections has a name, accounts and an end of its own, and those of
// another user are out of reach.
func TestSeveralConnections(t *testing.T) {
	a, browser := start(t)
	balance := regexp.MustCompile(`¥[\d,]+`)
	household, first := visit(t, browser, site+"/connections", url.Values{"name": {"Household"}})
	require.Contains(t, first, "<h1>Household</h1>")
	business, second := visit(t, browser, site+"/connections", url.Values{"name": {" <Shop> "}})
	require.Contains(t, second, "<h1>&lt;Shop&gt;</h1>")
	require.NotEqual(t, household, business)
	require.NotEqual(t, balance.FindString(first), balance.FindString(second))

	other := a.bank.box.Browser(a.routes())
	at, page := visit(t, other, household, nil)
	require.Equal(t, site+"/", at)
	require.NotContains(t, page, "/disconnect")

	_, page = visit(t, browser, business+"/disconnect", url.Values{})
	require.Contains(t, page, "Household")
	require.NotContains(t, page, "Shop")
	at, _ = visit(t, browser, business, nil)
	require.Equal(t, site+"/", at)
	_, page = visit(t, browser, household, nil)
	require.Equal(t, balance.FindString(first), balance.FindString(page))
	require.Equal(t, 2, a.bank.box.Count(ganbtest.Authorization), "nobody was sent to the bank again")
}

// The demo's buttons show what happens on bad days.
func TestDemo(t *testing.T) {
	_, browser := start(t)
	household, page := visit(t, browser, site+"/connections", url.Values{"name": {"Household"}})
	require.Contains(t, page, "<output>0</output>")
	_, page = visit(t, browser, household+"/demo", url.Values{"do": {"expire"}})
	require.Contains(t, page, "¥")
	_, page = visit(t, browser, household+"/demo", url.Values{"do": {"error"}})
	require.Contains(t, page, "The bank is not available right now")
	_, page = visit(t, browser, household, nil)
	require.Contains(t, page, "¥")
	_, page = visit(t, browser, household+"/demo", url.Values{"do": {"maintenance"}})
	require.Contains(t, page, "The bank is not available right now")
}

// Names that are empty or too long, and too many of them, are not added.
func TestNames(t *testing.T) {
	a, browser := start(t)
	for _, name := range []string{"", "  ", string(make([]byte, 101))} {
		at, page := visit(t, browser, site+"/connections", url.Values{"name": {name}})
		require.Equal(t, site+"/", at)
		require.NotContains(t, page, "/disconnect")
	}
	for range maxConnections {
		at, _ := visit(t, browser, site+"/connections", url.Values{"name": {"Household"}})
		require.NotEqual(t, site+"/", at)
	}
	at, _ := visit(t, browser, site+"/connections", url.Values{"name": {"One too many"}})
	require.Equal(t, site+"/", at)
	require.Equal(t, maxConnections, a.bank.box.Count(ganbtest.TokenEndpoint))
}

func TestLanguages(t *testing.T) {
	_, browser := start(t)
	for header, want := range map[string]string{
		"": "A name for this account", "en-US,en;q=0.9,ja;q=0.8": "A name for this account", "ja,en-US;q=0.9": "この口座の呼び名", "JA-JP": "この口座の呼び名",
	} {
		req, err := http.NewRequest("GET", site+"/", nil)
		require.NoError(t, err)
		req.Header.Set("Accept-Language", header)
		resp, err := browser.Do(req)
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		resp.Body.Close()
		require.Contains(t, string(body), want, header)
	}
}

func TestYen(t *testing.T) {
	for amount, want := range map[string]string{
		"0": "¥0", "999": "¥999", "1000": "¥1,000", "1234567": "¥1,234,567", "-100": "-¥100", "-123456": "-¥123,456",
	} {
		require.Equal(t, want, yen(amount))
	}
}
