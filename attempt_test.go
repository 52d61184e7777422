package ganbauth_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base32"
	"encoding/base64"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

// at says where a navigation comes from.
func at(site string) http.Header { return with(navigate, "Sec-Fetch-Site", site) }

// headerBytes is the size of an answer's header on the wire.
func headerBytes(resp *http.Response) int {
	dump, _ := httputil.DumpResponse(resp, false)
	return len(dump) + len("Date: Mon, 02 Jan 2006 15:04:05 GMT\r\n")
}

// take puts the cookies of an answer into the browser.
func (b *browser) take(resp *http.Response) {
	b.client.Jar.SetCookies(mustParse(appURL), resp.Cookies())
}

// tabs opens all paths at once: no request has the cookies of the others' answers. It
// returns where each tab is led.
func (b *browser) tabs(h http.Header, paths ...string) (targets []string) {
	b.t.Helper()
	header := with(h, "Cookie", b.cookieHeader())
	var answers []*http.Response
	for _, path := range paths {
		resp := b.app.browser().do("GET", path, header)
		require.Equal(b.t, 303, resp.StatusCode, body(resp))
		targets = append(targets, resp.Header.Get("Location"))
		answers = append(answers, resp)
	}
	for _, resp := range answers {
		b.take(resp)
	}
	return targets
}

// held lists the attempts that the browser holds.
func (a *app) held(b *browser) []ganbauth.Held {
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Cookie", b.cookieHeader())
	return ganbauth.HeldAttempts(a.kit, r)
}

func ordinaryPaths(n int) (paths []string) {
	for i := range n {
		paths = append(paths, fmt.Sprintf("/p/accounts/%09d?from=2026-11-01&to=2026-11-30", i))
	}
	return paths
}

// One pass over the cookies, and a fixed number of them opened: an allocation for each
// would show.
func TestD1CookiesByTheThousand(t *testing.T) {
	a := newApp(t, setup{bare: true, options: ganbauth.Options{
		Key:   keyIs("u"),
		Store: ganbauth.NewMemoryStore(), Logger: discard, Observe: func(context.Context, ganbauth.Event) {},
	}})
	b := a.browser()
	callback := b.callbackURL("/p")
	own := b.cookieHeader()
	name, _, _ := strings.Cut(own, "=")
	for kind, cookie := range map[string]string{
		"genuine":           own,
		"empty":             name + "=",
		"of another length": name + "=" + strings.Repeat("A", 300),
		"another attempt's": name[:len(name)-4] + "AAAA=" + strings.Repeat("A", 200),
		"another name":      ganbauth.AttemptPrefix(a.kit) + "x=" + strings.Repeat("A", 40),
		"somebody else's":   "x=" + strings.Repeat("A", 40),
	} {
		for _, request := range []string{"GET /bank/login", "GET /p", "POST /bank/logout", "GET " + strings.TrimPrefix(callback, appURL)} {
			t.Run(kind+" "+strings.SplitN(request, "?", 2)[0], func(t *testing.T) {
				method, path, _ := strings.Cut(request, " ")
				allocations := func(n int) float64 {
					r := httptest.NewRequest(method, path, nil)
					r.Header = with(at("same-origin"), "Cookie", strings.TrimSuffix(strings.Repeat(cookie+"; ", n), "; "))
					return testing.AllocsPerRun(3, func() { a.handler.ServeHTTP(httptest.NewRecorder(), r) })
				}
				require.InDelta(t, allocations(60), allocations(3000), 40)
			})
		}
	}
}

// Of all attempts 32 are opened, and of the one that a callback asks for 8 more.
func TestD1AttemptsThatAreOpened(t *testing.T) {
	a := newApp(t, setup{})
	b := a.browser()
	w := httptest.NewRecorder()
	ganbauth.PutAttempt(a.kit, w, httptest.NewRequest("GET", "/", nil), "state", ganbauth.Login{}, 0)
	b.take(w.Result())
	name, _, _ := strings.Cut(b.cookieHeader(), "=")
	behind := func(n int) *http.Request {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Cookie", strings.Repeat(name+"=planted; ", n)+b.cookieHeader())
		return r
	}
	require.Len(t, ganbauth.HeldAttempts(a.kit, behind(31)), 1)
	require.Empty(t, ganbauth.HeldAttempts(a.kit, behind(32)))
	require.True(t, ganbauth.FinishAttempt(a.kit, httptest.NewRecorder(), behind(39), "state", 0))
	require.False(t, ganbauth.FinishAttempt(a.kit, httptest.NewRecorder(), behind(40), "state", 0))
}

// Whatever is begun and finished, one after another, the cookies and the answers stay
// within their bounds.
func TestD2CookiesInSequence(t *testing.T) {
	for _, c := range []struct {
		name       string
		scope      string
		connection int
		location   int
	}{
		{"ordinary", "openid offline_access private:account", 0, 450},
		{"PKCE and a long redirect URI", "openid offline_access private:account", 0, 900},
		{"long scopes", "openid " + strings.Repeat("s", 249), 0, 900},
		{"connections", "openid offline_access private:account", 20, 450},
		{"long connections", "openid offline_access private:account", 255, 450},
		{"everything long", "openid " + strings.Repeat("s", 249), 255, 900},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, setup{}, func(t *testing.T, a *app) {
				rnd := rand.New(rand.NewPCG(1, 2))
				lengths := []int{0, 1, 40, 120, 256, 500, 800, 1024}
				b := a.browser()
				var states []string
				own := func() (names []string, size int) { // unfinished logins that this site began
					for _, h := range a.held(b) {
						if !h.Done && !h.Foreign {
							names, size = append(names, h.Name), size+h.Size
						}
					}
					return names, size
				}
				for i := range 300 {
					before, _ := own()
					foreign := false
					w := httptest.NewRecorder()
					r := httptest.NewRequest("GET", "/", nil)
					r.Header.Set("Cookie", b.cookieHeader())
					if len(states) > 0 && rnd.IntN(4) == 0 {
						ganbauth.FinishAttempt(a.kit, w, r, states[len(states)-1-rnd.IntN(min(len(states), 5))], rnd.IntN(1024))
					} else {
						l := ganbauth.Login{
							Foreign:    rnd.IntN(2) == 0,
							Scope:      []string{"openid offline_access private:account", c.scope}[rnd.IntN(2)],
							Connection: strings.Repeat("c", rnd.IntN(c.connection+1)),
						}
						n := lengths[rnd.IntN(len(lengths))]
						if foreign = l.Foreign; foreign {
							n = min(n, 256)
						}
						l.ReturnTo = strings.Repeat("r", n)
						if rnd.IntN(2) == 0 {
							l.ReturnTo, l.Path = l.ReturnTo[n/4:], l.ReturnTo[:n/4]
						}
						states = append(states, fmt.Sprint(i))
						ganbauth.PutAttempt(a.kit, w, r, fmt.Sprint(i), l, c.location)
					}
					b.take(w.Result())
					require.LessOrEqual(t, len(b.cookieHeader()), ganbauth.MaxCookiesEver)
					after, size := own()
					require.LessOrEqual(t, size, ganbauth.MaxOwnCookies+512)
					if foreign {
						require.Subset(t, after, before, "another site ends a login of this site's")
					}
					set := 0
					for _, line := range w.Header()["Set-Cookie"] {
						set += len("Set-Cookie: \r\n") + len(line)
					}
					require.LessOrEqual(t, set, ganbauth.MaxAnswerHeader-700-c.location)
					if rnd.IntN(20) == 0 {
						time.Sleep(time.Duration(rnd.IntN(12)) * time.Minute)
						for _, h := range a.held(b) { // what has expired is nobody's loss
							b.take(&http.Response{Header: http.Header{"Set-Cookie": {h.Name + "=; Path=/; Max-Age=0; Secure"}}})
						}
					}
				}
			})
		})
	}
}

// The same through the handlers, with the whole answer.
func TestD2AnswersInSequence(t *testing.T) {
	for _, c := range []struct {
		scope      string
		connection int
	}{{"private:account", 0}, {strings.Repeat("s", 249), 0}, {"private:account", 255}, {strings.Repeat("s", 249), 255}} {
		a := newApp(t, setup{options: ganbauth.Options{
			PKCE:       true,
			Scopes:     []string{"openid", c.scope},
			Name:       strings.Repeat("n", 32),
			Connection: func(*http.Request) (string, error) { return strings.Repeat("\xff", c.connection), nil },
		}})
		for _, sites := range [][]string{{"same-origin"}, {"cross-site"}, {"none"}, {""}, {"same-origin", "cross-site", "none", "same-site", ""}} {
			b := a.browser()
			last := ""
			for i := range 60 {
				h := at(sites[i%len(sites)])
				path := "/p/" + strings.Repeat("x", []int{10, 250, 1000, 2000}[i%4])
				if i%3 == 0 {
					path = "/bank/login?more=" + strings.Repeat("m", 100) + "&return_to=" + path
				}
				resp := b.do("GET", path, h)
				require.Equal(t, 303, resp.StatusCode)
				require.LessOrEqual(t, headerBytes(resp), ganbauth.MaxAnswerHeader)
				require.LessOrEqual(t, len(b.cookieHeader()), ganbauth.MaxCookiesEver)
				last = resp.Header.Get("Location")
			}
			resp := b.do("GET", a.bank.Approve(last), at("cross-site"))
			require.Equal(t, 303, resp.StatusCode, "the newest login can be finished")
			require.LessOrEqual(t, headerBytes(resp), ganbauth.MaxAnswerHeader)
			require.True(t, b.connected())
		}
	}
}

// Another site that sends the browser to the login again and again does not end the login
// that the user is consenting to, however that one was begun.
func TestD2OtherSitesDoNotEndALogin(t *testing.T) {
	long := "/bank/login?return_to=/p/" + strings.Repeat("x", 2040)
	for _, site := range []string{"same-origin", "none", "cross-site", "same-site", ""} {
		for _, many := range []int{5, 60} {
			t.Run(fmt.Sprintf("begun from %q, %d others", site, many), func(t *testing.T) {
				a := newApp(t, setup{})
				b := a.browser()
				alive := b.do("GET", "/p?a=1", at(site)).Header.Get("Location")
				for range many {
					require.Equal(t, 303, b.do("GET", long, at("cross-site")).StatusCode)
				}
				require.Less(t, len(b.cookieHeader()), ganbauth.MaxCookies)
				require.Equal(t, "/p?a=1", b.do("GET", a.bank.Approve(alive), at("cross-site")).Header.Get("Location"))
			})
		}
	}
	t.Run("nor behind the reload that brings a Strict session cookie", func(t *testing.T) {
		a := newApp(t, setup{sessions: func(s *scs.SessionManager) { s.Cookie.SameSite = http.SameSiteStrictMode }})
		b := a.browser()
		alive := b.follow(b.do("GET", "/p?a=1", at("same-origin"))).Header.Get("Location")
		for i := range 20 {
			resp := b.do("GET", fmt.Sprintf("/p/%d%s", i, strings.Repeat("x", 240)), at("cross-site"))
			require.Equal(t, 200, resp.StatusCode, "a reload")
			require.Equal(t, 303, b.follow(resp).StatusCode)
		}
		resp := b.follow(b.do("GET", a.bank.Approve(alive), at("cross-site")))
		require.Equal(t, "/p?a=1", resp.Header.Get("Location"))
	})
	t.Run("nor any of this site's", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		var alive []string
		for _, path := range []string{"/p/" + strings.Repeat("x", 900), "/p/1", "/p/2"} {
			alive = append(alive, b.do("GET", path, at("same-origin")).Header.Get("Location"))
		}
		for range 40 {
			b.do("GET", "/p/"+strings.Repeat("x", 240), at("cross-site"))
		}
		for _, target := range alive {
			require.Equal(t, 303, b.get(a.bank.Approve(target)).StatusCode)
		}
	})
}

func TestD2TabsAtOnce(t *testing.T) {
	for _, site := range []string{"none", "same-origin", "cross-site", ""} {
		t.Run(fmt.Sprintf("five ordinary tabs from %q come back to their pages", site), func(t *testing.T) {
			a := newApp(t, setup{options: ganbauth.Options{PKCE: true}})
			b := a.browser()
			paths := ordinaryPaths(5)
			for i, target := range b.tabs(at(site), paths...) {
				require.Equal(t, paths[i], b.do("GET", a.bank.Approve(target), at("cross-site")).Header.Get("Location"))
			}
		})
		t.Run(fmt.Sprintf("thirty from %q are fewer after the next answer", site), func(t *testing.T) {
			a := newApp(t, setup{})
			b := a.browser()
			targets := b.tabs(at(site), ordinaryPaths(30)...)
			require.Less(t, len(b.cookieHeader()), 8<<10)
			page := "/p/" + strings.Repeat("x", 200)
			resp := b.do("GET", page, at(site))
			require.LessOrEqual(t, headerBytes(resp), ganbauth.MaxAnswerHeader)
			require.Less(t, len(b.cookieHeader()), 4<<10+512)
			last := resp.Header.Get("Location")
			if site == "same-origin" {
				refused(t, b.get(a.bank.Approve(targets[0]))) // the oldest goes first
			}
			b.do("GET", "/p", at(site))
			require.Less(t, len(b.cookieHeader()), ganbauth.MaxCookies)
			if site == "same-origin" {
				require.Equal(t, 303, b.get(a.bank.Approve(targets[29])).StatusCode)
			}
			if site == "same-origin" || site == "none" { // of other sites' the oldest stay
				require.Equal(t, page, b.get(a.bank.Approve(last)).Header.Get("Location"), "it is not forgotten for want of room")
			}

			b = a.browser()
			targets = b.tabs(at(site), ordinaryPaths(30)...)
			resp = b.do("GET", a.bank.Approve(targets[7]), at("cross-site"))
			require.Equal(t, 303, resp.StatusCode, "any of them can be finished")
			require.LessOrEqual(t, headerBytes(resp), ganbauth.MaxAnswerHeader)
			require.Less(t, len(b.cookieHeader()), 4<<10)
		})
	}
	t.Run("a callback finds its attempt behind any number of others", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		targets := b.tabs(navigate, ordinaryPaths(80)...)
		require.Equal(t, 303, b.get(a.bank.Approve(targets[79])).StatusCode)
		require.True(t, b.connected())
	})
	t.Run("of one second the later ones stay", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			var targets []string
			for _, path := range ordinaryPaths(30) {
				time.Sleep(time.Millisecond)
				cookies := b.cookies()
				slices.SortFunc(cookies, func(a, b *http.Cookie) int { return strings.Compare(a.Name, b.Name) })
				resp := a.browser().do("GET", path, with(at("same-origin"), "Cookie", cookieHeader(cookies)))
				targets = append(targets, resp.Header.Get("Location"))
				b.take(resp)
			}
			for _, target := range targets[25:] {
				require.Equal(t, 303, b.get(a.bank.Approve(target)).StatusCode)
			}
		})
	})
	t.Run("of the same instant the later ones stay", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			var targets []string
			for _, path := range ordinaryPaths(30) {
				targets = append(targets, b.do("GET", path, at("same-origin")).Header.Get("Location"))
			}
			for _, target := range targets[25:] {
				require.Equal(t, 303, b.get(a.bank.Approve(target)).StatusCode)
			}
			refused(t, b.get(a.bank.Approve(targets[0])))
		})
	})
}

// What a login forgets where there is little room.
func TestD2LittleRoom(t *testing.T) {
	const kitScope = "openid offline_access private:account"
	fill := func(t *testing.T, size int) (*app, *browser, func(l ganbauth.Login, location int) int) {
		a := newApp(t, setup{})
		b := a.browser()
		put := func(l ganbauth.Login, location int) (lines int) {
			w := httptest.NewRecorder()
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Cookie", b.cookieHeader())
			ganbauth.PutAttempt(a.kit, w, r, fmt.Sprint(len(b.cookieHeader()), l), l, location)
			for _, line := range w.Header()["Set-Cookie"] {
				lines += len("Set-Cookie: \r\n") + len(line)
			}
			b.take(w.Result())
			return lines
		}
		for i := 0; len(b.cookieHeader()) < size; i++ {
			put(ganbauth.Login{Foreign: i > 8, Scope: kitScope}, 0)
		}
		return a, b, put
	}
	newest := func(a *app, b *browser) ganbauth.Login {
		held := a.held(b)
		return held[len(held)-1].Login
	}
	t.Run("both paths, and nothing else", func(t *testing.T) {
		a, b, put := fill(t, 0)
		l := ganbauth.Login{ReturnTo: "/" + strings.Repeat("r", 400), Path: "/" + strings.Repeat("l", 400), Scope: kitScope, Connection: "5"}
		require.LessOrEqual(t, put(l, 1900), ganbauth.MaxAnswerHeader-700-1900)
		require.Equal(t, ganbauth.Login{Scope: kitScope, Connection: "5"}, newest(a, b))
	})
	t.Run("none, if they just fit", func(t *testing.T) {
		l := ganbauth.Login{ReturnTo: "/" + strings.Repeat("r", 400), Path: "/" + strings.Repeat("l", 400), Scope: kitScope}
		_, _, put := fill(t, 0)
		location := ganbauth.MaxAnswerHeader - 700 - put(l, 0)
		a, b, put := fill(t, 0)
		put(l, location)
		require.Equal(t, l, newest(a, b))
		a, b, put = fill(t, 0)
		put(l, location+1)
		require.Equal(t, ganbauth.Login{Scope: kitScope}, newest(a, b))
	})
	t.Run("a short path before the bound is passed", func(t *testing.T) {
		_, b, put := fill(t, ganbauth.MaxCookies-170)
		put(ganbauth.Login{ReturnTo: "/" + strings.Repeat("r", 255), Scope: strings.Repeat("s", 255), Connection: strings.Repeat("c", 255)}, 1000)
		require.LessOrEqual(t, len(b.cookieHeader()), ganbauth.MaxCookiesEver)
	})
	t.Run("a long path after it", func(t *testing.T) {
		a, b, _ := fill(t, 0)
		b.tabs(at("same-origin"), ordinaryPaths(30)...)
		before := len(b.cookieHeader())
		target := b.do("GET", "/p/"+strings.Repeat("x", 1000), at("same-origin")).Header.Get("Location")
		require.Less(t, len(b.cookieHeader()), before)
		require.Equal(t, "/home", b.get(a.bank.Approve(target)).Header.Get("Location"))
	})
}

// The numbers in the documents are the code's, and every number in that section is held.
func TestD2NumbersInTheDocuments(t *testing.T) {
	comma := func(n int) string {
		s := fmt.Sprint(n)
		if len(s) > 3 {
			s = s[:len(s)-3] + "," + s[len(s)-3:]
		}
		return s
	}
	want := []string{
		comma(ganbauth.MaxCookiesEver), comma(2 * ganbauth.MaxCookiesEver), comma(ganbauth.MaxAnswerHeader),
		comma(ganbauth.MaxOwnPath), comma(ganbauth.MaxOtherPath), "8", "4", // the last two are nginx's
	}
	for page, heading := range map[string]string{
		"docs/production.md":    "\n## Sizes of cookies and headers\n",
		"docs/ja/production.md": "\n## Cookieとヘッダーの大きさ\n",
	} {
		data, err := os.ReadFile(page)
		require.NoError(t, err)
		_, section, ok := strings.Cut(string(data), heading)
		require.True(t, ok, page)
		section, _, _ = strings.Cut(section, "\n## ")
		section = strings.NewReplacer("1つ", "", "2つ", "", "1行", "").Replace(section)
		require.Equal(t, want, regexp.MustCompile(`\d[\d,]*`).FindAllString(section, -1), page)
	}
	handlers, err := os.ReadFile("handlers.go")
	require.NoError(t, err)
	doc, _, ok := strings.Cut(string(handlers), "\nfunc (k *Kit) LoginHandler(")
	require.True(t, ok)
	doc = strings.ReplaceAll(doc[strings.LastIndex(doc, "\n\n"):], "\n// ", " ")
	require.Contains(t, doc, fmt.Sprintf("up to %s characters if a page of this site led here, and up to %s",
		comma(ganbauth.MaxOwnPath), comma(ganbauth.MaxOtherPath)))
}

// How long a path may be depends on who led to it; one that is too long is DefaultReturn.
func TestD2PathsThatAreRemembered(t *testing.T) {
	a := newApp(t, setup{})
	for _, c := range []struct {
		name  string
		h     http.Header
		limit int
	}{
		{"a page of this site", at("same-origin"), ganbauth.MaxOwnPath},
		{"the user", at("none"), ganbauth.MaxOtherPath},
		{"another site", at("cross-site"), ganbauth.MaxOtherPath},
		{"another host of the domain", at("same-site"), ganbauth.MaxOtherPath},
		{"an old browser", with(at(""), "Referer", appURL+"/x"), ganbauth.MaxOwnPath},
		{"an old browser without a Referer", at(""), ganbauth.MaxOtherPath},
		{"an old browser, another site", with(at(""), "Referer", "https://other.example/x"), ganbauth.MaxOtherPath},
		{"an old browser, another scheme", with(at(""), "Referer", "http://app.example/x"), ganbauth.MaxOtherPath},
		{"a Referer that contradicts", with(at("cross-site"), "Referer", appURL+"/x"), ganbauth.MaxOtherPath},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, login := range []string{"", "/bank/login?return_to="} {
				room := c.limit
				if login != "" {
					room -= len("/bank/login")
				}
				fits := "/p/" + strings.Repeat("x", room-3)
				b := a.browser()
				target := b.do("GET", login+fits, c.h).Header.Get("Location")
				require.Equal(t, fits, b.get(a.bank.Approve(target)).Header.Get("Location"))
				b = a.browser()
				target = b.do("GET", login+"/p/"+strings.Repeat("x", c.limit-2), c.h).Header.Get("Location")
				require.Equal(t, "/home", b.get(a.bank.Approve(target)).Header.Get("Location"))
			}
		})
	}
}

// An answer's header has so much room. Long settings take of it, and never so much that a path
// of 256 characters is forgotten.
func TestD2LongSettingsLeaveLessRoom(t *testing.T) {
	long := func(s string) string { return s + strings.Repeat("x", 256-len(s)) }
	a := newApp(t, setup{options: ganbauth.Options{
		RedirectURI: long(appURL + "/bank/callback?"),
		Scopes:      []string{"openid", long("openid private:")[len("openid "):]},
		PKCE:        true,
		Connection:  func(*http.Request) (string, error) { return strings.Repeat("c", 255), nil },
	}})
	for length, fits := range map[int]bool{ganbauth.MaxOtherPath: true, 600: true, ganbauth.MaxOwnPath: false} {
		b := a.browser()
		path := "/p/" + strings.Repeat("x", length-3)
		back := b.get(a.bank.Approve(b.do("GET", path, at("same-origin")).Header.Get("Location")))
		require.Equal(t, fits, back.Header.Get("Location") == path, "%d characters: %s", length, back.Header.Get("Location"))
	}
}

// Where login and page are too long together, the page is remembered.
func TestD2TheLoginIsForgottenFirst(t *testing.T) {
	a := newApp(t, setup{})
	const login = "/bank/login?client=5"
	for length, want := range map[int]string{ganbauth.MaxOtherPath: login + "&return_to=", ganbauth.MaxOtherPath + 1: ""} {
		b := a.browser()
		page := "/p/" + strings.Repeat("x", length-len(login+"/p/"))
		target := b.authorizationURL(login + "&return_to=" + page)
		resp := b.get("/bank/callback?error=access_denied&state=" + mustParse(target).Query().Get("state"))
		require.Equal(t, want+page, links(resp)["Connect again"])
	}
}

// What has expired goes with the next login, and what cannot be read takes of the room.
func TestD2OtherCookiesCount(t *testing.T) {
	t.Run("expired", func(t *testing.T) {
		inBubble(t, setup{}, func(t *testing.T, a *app) {
			b := a.browser()
			for _, path := range ordinaryPaths(5) {
				b.authorizationURL(path)
			}
			time.Sleep(10*time.Minute + time.Second)
			b.authorizationURL("/p")
			require.Len(t, b.cookies(), 1)
		})
	})
	t.Run("unreadable", func(t *testing.T) {
		bank := ganbtest.Options{ClientID: "id"}
		before := newApp(t, setup{bank: bank})
		after := newApp(t, setup{bank: bank, config: func(c *ganbauth.Config) { c.Salt += "2" }})
		b := before.browser()
		for _, path := range ordinaryPaths(20) {
			b.do("GET", path, at("cross-site"))
		}
		old := b.cookies()
		b.app, b.client.Transport = after, serveDirectly(func() http.Handler { return after.handler })
		last := ""
		for _, path := range ordinaryPaths(20) {
			last = b.do("GET", path, at("cross-site")).Header.Get("Location")
			require.LessOrEqual(t, len(b.cookieHeader()), ganbauth.MaxCookiesEver)
		}
		require.Subset(t, b.cookies(), old)
		require.Equal(t, ordinaryPaths(20)[19], b.get(after.bank.Approve(last)).Header.Get("Location"))
	})
	t.Run("one twice", func(t *testing.T) {
		a := newApp(t, setup{})
		b := a.browser()
		b.authorizationURL("/p")
		cookie := b.cookieHeader()
		resp := a.browser().do("POST", "/bank/logout", with(at("same-origin"), "Cookie", cookie+"; "+cookie))
		require.Len(t, resp.Header["Set-Cookie"], 1)
	})
}

// The link of a page that says why a login failed begins the same login again.
func TestRetry(t *testing.T) {
	a := newApp(t, setup{})
	for path, want := range map[string]string{
		"/p?a=1&b=%2F":                                       "/p?a=1&b=%2F",
		"/bank/login":                                        "/bank/login",
		"/bank/login?":                                       "/bank/login",
		"/bank/login?return_to=/home":                        "/bank/login",
		"/bank/login?return_to=//evil":                       "/bank/login",
		"/bank/login?client=5":                               "/bank/login?client=5",
		"/bank/login?client=5&return_to=/x":                  "/bank/login?client=5&return_to=/x",
		"/bank/login?return_to=%2Fx&client=5&a=%26":          "/bank/login?client=5&a=%26&return_to=/x",
		"/bank/login?return%5Fto=/x":                         "/bank/login?return_to=/x",
		"/bank/login?return_to=/x%3Fa%3D1%26b%3D%252F%2B%3B": "/bank/login?return_to=/x?a=1%26b=%252F%2B%3B",
	} {
		t.Run(path, func(t *testing.T) {
			b := a.browser()
			denied := func(authURL string) *http.Response {
				state := mustParse(authURL).Query().Get("state")
				return b.get("/bank/callback?error=access_denied&state=" + state)
			}
			page := body(denied(b.authorizationURL(path)))
			link := html.UnescapeString(regexp.MustCompile(`href="([^"]*)"`).FindStringSubmatch(page)[1])
			require.Equal(t, want, link)
			page = body(denied(b.authorizationURL(link)))
			require.Contains(t, page, `href="`+html.EscapeString(link)+`"`, "and again")
		})
	}
}

func TestLoginHandlerScopes(t *testing.T) {
	t.Run("asks for more", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{Scopes: []string{"openid", "private:account"}}})
		a.mux.Handle("/bank/more", a.kit.LoginHandler("private:transfer", "openid", "x"))
		b := a.browser()
		target := b.authorizationURL("/bank/more?return_to=/transfer")
		require.Equal(t, "openid private:account private:transfer x", mustParse(target).Query().Get("scope"))
		require.Equal(t, "/transfer", b.get(a.bank.Approve(target)).Header.Get("Location"))
		require.Equal(t, 200, b.get("/transfer").StatusCode)
		require.NotContains(t, a.log.String(), "level=ERROR")
		resp := b.get("/bank/callback?error=access_denied&state=" + mustParse(b.authorizationURL("/bank/more?return_to=/x")).Query().Get("state"))
		require.Contains(t, body(resp), `href="/bank/more?return_to=/x"`)
	})
	for name, c := range map[string]struct {
		scopes []string
		want   string
	}{
		"a space":               {[]string{"a b"}, "is not a scope"},
		"an empty one":          {[]string{""}, "is not a scope"},
		"too long together":     {[]string{strings.Repeat("s", 256-len("a ")) + "s"}, "must have 1 to 256 characters together, not 257"},
		"openid without issuer": {[]string{"openid"}, "JWTIssuer"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{
				config:  func(c *ganbauth.Config) { c.JWTIssuer = "" },
				options: ganbauth.Options{Scopes: []string{"a"}},
			})
			h := a.kit.LoginHandler(c.scopes...)
			require.Equal(t, 1, strings.Count(a.log.String(), "level=ERROR"))
			require.Contains(t, a.log.String(), c.want)
			require.Contains(t, a.log.String(), "ganbauth: this LoginHandler can begin no login")
			require.Equal(t, name != "openid without issuer", strings.Contains(a.log.String(), "LoginHandler: scopes"))
			a.mux.Handle("/bank/more", h)
			for range 2 {
				resp := a.browser().get("/bank/more")
				require.Equal(t, 500, resp.StatusCode)
				require.Empty(t, resp.Header["Set-Cookie"])
			}
			require.Equal(t, 1, strings.Count(a.log.String(), "level=ERROR"))
			require.Equal(t, 303, a.browser().get("/bank/login").StatusCode, "the other one works")
		})
	}
	t.Run("as long as may be", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{Scopes: []string{"a"}}})
		a.mux.Handle("/bank/more", a.kit.LoginHandler(strings.Repeat("s", 256-len("a "))))
		require.Equal(t, 303, a.browser().get("/bank/more").StatusCode)
	})
	t.Run("of no kit", func(t *testing.T) {
		for _, k := range []*ganbauth.Kit{nil, {}} {
			w := httptest.NewRecorder()
			k.LoginHandler("x").ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			require.Equal(t, 500, w.Code)
		}
	})
}

// What cannot be read is somebody else's: it is never deleted, and never an error.
func TestE5UnreadableAttempts(t *testing.T) {
	for name, planted := range map[string]func(a *app, own string) string{
		"I6 an attempt sealed with another salt": func(*app, string) string {
			b := newApp(t, setup{config: func(c *ganbauth.Config) { c.Salt += "2" }, bank: ganbtest.Options{ClientID: "id"}}).browser()
			b.authorizationURL("/p")
			return b.cookieHeader()
		},
		"garbage of this kit's name":  func(a *app, _ string) string { return ganbauth.AttemptPrefix(a.kit) + "x=x" },
		"an empty one":                func(a *app, _ string) string { return ganbauth.AttemptPrefix(a.kit) + "=" },
		"an attempt that was cut":     func(_ *app, own string) string { return own[:len(own)-5] },
		"an attempt under a new name": func(_ *app, own string) string { return strings.Replace(own, "=", "x=", 1) },
		"a thousand of this kit's name": func(a *app, _ string) string {
			return strings.TrimSuffix(strings.Repeat(ganbauth.AttemptPrefix(a.kit)+"x=x; ", 1000), "; ")
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, setup{bank: ganbtest.Options{ClientID: "id"}})
			b := a.browser()
			b.authorizationURL("/p")
			cookie := planted(a, b.cookieHeader())
			require.True(t, strings.HasPrefix(cookie, ganbauth.AttemptPrefix(a.kit)))
			for _, path := range []string{"/p", "/bank/login"} {
				resp := a.browser().do("GET", path, with(navigate, "Cookie", cookie))
				require.Equal(t, 303, resp.StatusCode)
				require.Len(t, resp.Header["Set-Cookie"], 1)
				authURL := resp.Header.Get("Location")
				both := cookie + "; " + strings.SplitN(resp.Header.Get("Set-Cookie"), ";", 2)[0]
				resp = a.browser().do("GET", a.bank.Approve(authURL), with(navigate, "Cookie", both))
				require.Equal(t, 303, resp.StatusCode)
				require.NotContains(t, strings.Join(resp.Header["Set-Cookie"], "\n"), "Max-Age=0")
			}
			resp := a.browser().do("GET", "/bank/callback?code=x&state=x", with(navigate, "Cookie", cookie))
			refused(t, resp)
			require.Empty(t, resp.Header["Set-Cookie"])
			resp = a.browser().do("POST", "/bank/logout", with(at("same-origin"), "Cookie", cookie))
			require.Equal(t, 303, resp.StatusCode)
			require.Empty(t, resp.Header["Set-Cookie"])
		})
	}
}

// A log-out ends all attempts, wherever it leads.
func TestLogoutEndsAllAttempts(t *testing.T) {
	a := newApp(t, setup{})
	a.mux.HandleFunc("/forget", func(w http.ResponseWriter, r *http.Request) { require.NoError(t, a.kit.Forget(w, r)) })
	for _, path := range []string{"/bank/logout", "/bank/logout?return_to=/" + strings.Repeat("x", 2000), "/forget"} {
		b := a.browser()
		for _, page := range ordinaryPaths(20) {
			b.get(page)
		}
		require.Greater(t, len(b.cookies()), 5)
		b.post(path)
		require.Empty(t, b.cookies(), path)
	}
}

// Over http, which only a loopback address has, a cookie can be neither Secure nor
// __Host-.
func TestAttemptsOverHTTP(t *testing.T) {
	a := newApp(t, setup{options: ganbauth.Options{RedirectURI: "http://localhost:8080/bank/callback"}})
	c, err := http.ParseSetCookie(a.browser().get("/p").Header.Get("Set-Cookie"))
	require.NoError(t, err)
	require.Regexp(t, `^ganb\.[\w-]{8}\.[\w-]{16}$`, c.Name)
	require.False(t, c.Secure)
	require.True(t, c.HttpOnly)
}

// Cookies know no ports: two applications on two ports of one host get each other's.
func TestE5TwoApplicationsOfOneHost(t *testing.T) {
	const otherURL = appURL + ":8443"
	for name, second := range map[string]setup{
		"another redirect URI": {options: ganbauth.Options{RedirectURI: otherURL + "/bank/callback"}},
		"another client":       {bank: ganbtest.Options{ClientID: "another"}},
		"another name":         {options: ganbauth.Options{Name: "another"}},
	} {
		t.Run(name, func(t *testing.T) {
			one := newApp(t, setup{})
			second.sessions = func(s *scs.SessionManager) { s.Cookie.Name = "session2" }
			two := newApp(t, second)
			b := one.browser()
			b.client.Transport = byPort{"": serveDirectly(func() http.Handler { return one.handler }),
				"8443": serveDirectly(func() http.Handler { return two.handler })}
			begin := func(a *app, base string) string {
				resp := b.get(base + "/p")
				require.Equal(t, 303, resp.StatusCode)
				return resp.Header.Get("Location")
			}
			finish := func(a *app, base, authURL string) {
				t.Helper()
				callback := mustParse(a.bank.Approve(authURL))
				require.Equal(t, "/p", b.get(base+callback.RequestURI()).Header.Get("Location"))
			}
			first := begin(one, appURL)
			var others []string
			for range 30 {
				others = append(others, begin(two, otherURL))
			}
			require.Less(t, len(b.cookieHeader()), 2*ganbauth.MaxCookiesEver)
			finish(two, otherURL, others[29])
			require.Equal(t, 303, b.do("POST", otherURL+"/bank/logout", at("same-origin")).StatusCode)
			finish(one, appURL, first)
			require.Equal(t, 200, b.get("/p").StatusCode)
		})
	}
}

// byPort is a transport for several applications of one host.
type byPort map[string]http.RoundTripper

func (p byPort) RoundTrip(r *http.Request) (*http.Response, error) {
	return p[r.URL.Port()].RoundTrip(r)
}

// What an attempt carries arrives, whatever it is.
func TestAttemptCarries(t *testing.T) {
	for _, scopes := range [][]string{{"openid"}, {"openid", "private:account"}} {
		a := newApp(t, setup{options: ganbauth.Options{Scopes: scopes}})
		for _, l := range []ganbauth.Login{
			{},
			{Foreign: true, ReturnTo: "/x?y=z", Path: "/login?c=5", Scope: "openid private:account", Connection: "c"},
			{Scope: "openid private:account more", Connection: strings.Repeat("\xff\x00;= \n/%", 31) + "1234567"},
			{Scope: "openid", ReturnTo: strings.Repeat("r", 1024)},
			{Scope: "openidx"},
			{Scope: "private:account openid"},
		} {
			b := a.browser()
			w := httptest.NewRecorder()
			r := httptest.NewRequest("GET", "/", nil)
			ganbauth.PutAttempt(a.kit, w, r, "state", l, 450)
			b.take(w.Result())
			require.Len(t, a.held(b), 1)
			require.Equal(t, l, a.held(b)[0].Login)
			require.Less(t, a.held(b)[0].Size, ganbauth.MaxOwnCookies)
			r.Header.Set("Cookie", b.cookieHeader())
			require.False(t, ganbauth.FinishAttempt(a.kit, httptest.NewRecorder(), r, "another", 450))
			// A finished one keeps the connection, by which a second delivery is
			// answered.
			w = httptest.NewRecorder()
			require.True(t, ganbauth.FinishAttempt(a.kit, w, r, "state", 450))
			b.take(w.Result())
			require.Len(t, a.held(b), 1)
			require.True(t, a.held(b)[0].Done)
			require.Equal(t, l.Connection, a.held(b)[0].Connection)
			require.Equal(t, l.Scope, a.held(b)[0].Scope)
		}
	}
	t.Run("a finished login is short", func(t *testing.T) {
		a := newApp(t, setup{bare: true})
		b := a.browser()
		target := b.do("GET", "/p/"+strings.Repeat("x", 500), at("same-origin")).Header.Get("Location")
		require.Equal(t, 303, b.get(a.bank.Approve(target)).StatusCode)
		require.Less(t, a.held(b)[0].Size, 200)
	})
	t.Run("the nonce does not tell the verifier", func(t *testing.T) {
		nonce, verifier := ganbauth.AttemptSecrets()
		n, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(nonce)
		require.NoError(t, err)
		v, err := base64.RawURLEncoding.DecodeString(verifier)
		require.NoError(t, err)
		require.Len(t, n, 16)
		require.Len(t, v, 32)
		require.False(t, bytes.HasPrefix(v, n))
		again, _ := ganbauth.AttemptSecrets()
		require.NotEqual(t, nonce, again)
	})
}

func TestAttemptRecord(t *testing.T) {
	record := ganbauth.AttemptRecord()
	require.NoError(t, ganbauth.UnmarshalAttempt(record))
	for n := range record {
		require.Error(t, ganbauth.UnmarshalAttempt(record[:n]))
	}
	require.Error(t, ganbauth.UnmarshalAttempt(append(record[:len(record):len(record)], 0)))
	for version := range 256 {
		record[0] = byte(version)
		require.Equal(t, version == 2, ganbauth.UnmarshalAttempt(record) == nil, "version %d", version)
	}
}

// Instances of two versions, and one before and after an update, finish each other's logins.
func TestAttemptOfAnotherVersion(t *testing.T) {
	const (
		finished = "__Host-ganb.qRUil7C2.S6aXNcpTdl7Wpwnt=" +
			"7GqttvjTh596hgeBYZ5Pn12oJz3TxRknV6NVvE4fwfqgLxYFcIoq7MLPCzbSQMGBzARgmdsq17bMadzU6DG2P6GgBgm7kc-5L0eVpOhawStIJh9lSf2kk3NY" +
			"3OrYHW4nlTcmOjwJgZ_Slxz-z4XRrE6r48b4CQgvFmsJLyqku3sgcTaH"
		begun = "__Host-ganb.qRUil7C2.S6aXNcpTdl7Wpwnt=" +
			"Fq1K_UWmMGnFVJr1tFEDQJEDBLzQK9-kecv5eQts6MTO6xFAubNlvKgM8zwBXMRvbdjjfZABMtYMmGtuYwoTetCn-nGbV7yPr0koiX5zGBXPV3m0XSUO1sC-" +
			"N-VrYDduAg"
	)
	require.Equal(t, ganbauth.SealedAttempt{
		Login:  ganbauth.Login{Foreign: true, ReturnTo: "/x?y=z", Path: "/bank/login?c=5", Scope: "openid more", Connection: "5"},
		OpenID: true, PKCE: true,
		Begun: time.UnixMilli(1700000000123), Done: time.UnixMilli(1700000060456),
		Owner: "TBApaX7jWHFdOhSirdgXxA", Nonce: "AX5RJY3RSH3X5TDVMV3AQQ3JZY", Verifier: "c2VlZHNlZWRzZWVkc2VlZHNlZWRzZWVkc2VlZHNlZWQ",
	}, ganbauth.ReadAttemptCookie(finished))
	plain := ganbauth.ReadAttemptCookie(begun)
	require.False(t, plain.OpenID || plain.PKCE || plain.Foreign)
	require.Zero(t, plain.Done)

	a := newApp(t, setup{})
	w := httptest.NewRecorder()
	ganbauth.PutAttempt(a.kit, w, httptest.NewRequest("GET", "/", nil), "state", ganbauth.Login{}, 0)
	cookie, err := http.ParseSetCookie(w.Header().Get("Set-Cookie"))
	require.NoError(t, err)
	require.Len(t, cookie.Name+"="+cookie.Value, len(begun), "a login needs no more room in the browser than before")
}

// In FIPS 140-only mode no key is derived from a short client secret, and New says so.
func TestNewWithoutAnAttemptKey(t *testing.T) {
	const variable = "GANBAUTH_FIPS"
	if os.Getenv(variable) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestNewWithoutAnAttemptKey$")
		cmd.Env = append(os.Environ(), variable+"=1", "GODEBUG=fips140=only")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return
	}
	c, err := ganbauth.NewConnector("id", "secret", ganbauth.AuthBasic, ganbauth.Config{AuthBaseURL: "https://bank.test", Salt: "s"})
	require.NoError(t, err)
	_, err = ganbauth.New(c, nil, ganbauth.Options{
		Scopes: []string{"a"}, RedirectURI: appURL + "/bank/callback", DefaultReturn: "/",
		Store: ganbauth.NewMemoryStore(), Key: keyIs("u"),
	})
	require.ErrorContains(t, err, "attempt cookie: ")
}

// Logins of one connection do not make one of another look like a loop.
func TestNoLoopKnowsConnections(t *testing.T) {
	inBubble(t, setup{}, func(t *testing.T, a *app) {
		b := a.browser()
		r := httptest.NewRequest("GET", "/", nil)
		put := func(answer func(w http.ResponseWriter)) {
			w := httptest.NewRecorder()
			answer(w)
			b.take(w.Result())
			r.Header.Set("Cookie", b.cookieHeader())
		}
		put(func(w http.ResponseWriter) {
			ganbauth.PutAttempt(a.kit, w, r, "1", ganbauth.Login{Scope: "openid x", Connection: "5"}, 0)
		})
		require.False(t, ganbauth.JustReturned(a.kit, r, "5", "openid"), "it is not finished")
		put(func(w http.ResponseWriter) { ganbauth.FinishAttempt(a.kit, w, r, "1", 0) })
		require.False(t, ganbauth.JustReturned(a.kit, r, "6", "openid"))
		require.False(t, ganbauth.JustReturned(a.kit, r, "5", "openid", "y"), "it asks for more")
		require.True(t, ganbauth.JustReturned(a.kit, r, "5", "x", "openid"))
		time.Sleep(30 * time.Second)
		require.True(t, ganbauth.JustReturned(a.kit, r, "5", "openid"))
		time.Sleep(time.Millisecond)
		require.False(t, ganbauth.JustReturned(a.kit, r, "5", "openid"))
	})
}

// An instance that was given other scopes meanwhile can finish the login. It does not
// know the scopes that were asked.
func TestScopesChangeDuringALogin(t *testing.T) {
	bank := ganbtest.Options{ClientID: "id", ClientSecret: "secret"}
	before := newApp(t, setup{bank: bank, options: ganbauth.Options{Scopes: []string{"openid", "a"}}})
	after := newApp(t, setup{bank: bank, options: ganbauth.Options{Scopes: []string{"openid", "a", "b"}}})
	w := httptest.NewRecorder()
	ganbauth.PutAttempt(before.kit, w, httptest.NewRequest("GET", "/", nil), "state", ganbauth.Login{Scope: "openid a c"}, 450)
	b := before.browser()
	b.take(w.Result())
	require.Len(t, after.held(b), 1)
	require.Empty(t, after.held(b)[0].Scope)
	require.Equal(t, "openid a c", before.held(b)[0].Scope)
}

// returnPaths are what return_to may be. An empty want means that the login must end at the
// default page. Without a name a row is called by its payload.
var returnPaths = []struct{ name, payload, want string }{
	{"", "//evil.example", ""},
	{"", "///evil.example", ""},
	{"", "/\\evil.example", ""},
	{"", "\\evil.example", ""},
	{"", "/\t/evil.example", ""},
	{"", "\t//evil.example", ""},
	{"", "/%09/evil.example", ""},
	{"", "/%2fevil.example", ""},
	{"", "/%5cevil.example", ""},
	{"", "/.//evil.example", ""},
	{"", "/./\\evil.example", ""},
	{"", "/", "/"},
	{"", "http:evil.example", ""},
	{"", "https:evil.example", ""},
	{"", "http://evil.example", ""},
	{"", "javascript:alert(1)", ""},
	{"", "/javascript:alert(1)", "/javascript:alert(1)"},
	{"", "//app.example@evil.example", ""},
	{"", "https://app.example.evil.example", ""},
	{"", "//evil%E3%80%82example", ""},
	{"", "/／evil.example", "/%EF%BC%8Fevil.example"},
	{"", "@evil.example", ""},
	{"", "/@evil.example", "/@evil.example"},
	{"", "/a\\b", ""},
	{"", "/a/../../b", ""},
	{"", "/%zz", ""},
	{"", "/é", "/%C3%A9"},
	{"", "/~a!", "/~a!"},
	{"", "/日本語?q=値", "/%E6%97%A5%E6%9C%AC%E8%AA%9E?q=%E5%80%A4"},
	{"", "/ok?next=//evil.example", "/ok?next=//evil.example"},
	{"", "/ok#frag", "/ok"},
	{"", "//", ""},
	{"", "//?q=1", ""},
	{"", "mailto:/x", ""},
	{"a dot, and 2,048 characters", "/." + strings.Repeat("a", 2046), "/." + strings.Repeat("a", 2046)},
	{"a dot, and 2,049 characters", "/." + strings.Repeat("a", 2047), ""},
	{"", "/ok#access_token=x", "/ok"},
	{"", "?q=1", ""},
	{"/", "/" + strings.Repeat("a", 2047), "/" + strings.Repeat("a", 2047)},
	{"/", "/" + strings.Repeat("a", 2048), ""},
	{"/", "/" + strings.Repeat("a", 8191), ""},
	{"longer than 2,048 with its fragment", "/a#" + strings.Repeat("b", 2046), ""},
	{"2,048 with its fragment", "/a#" + strings.Repeat("b", 2045), "/a"},
	{"encoded too long", "/" + strings.Repeat("日", 300), ""},
	{"", "%2f%2fevil.example", ""},
	{"the slash itself encoded", "%2f", ""},
	{"the slash itself encoded", "%2fevil.example", ""},
	{"", "/%252f%252fevil.example", "/%252f%252fevil.example"},
	{"", "/bank/login", ""},
	{"", "/bank/callback?code=x&state=y", ""},
	{"", "/bank/./login", ""},
	{"", "http://[::1", ""},
	{"", ":", ""},
	{"a line break", "/a\r\nSet-Cookie: x=y", ""},
	{"DEL", "/a\x7f", ""},
	{"a C1 control", "/a\u0085b", ""},
	{"not UTF-8", "/\xff", "/%FF"},
	{"a space", "/a b?c d", "/a%20b?c%20d"},
	{"quotes", `/a"b?c"<d>`, "/a%22b?c%22%3Cd%3E"},
	{"an empty segment", "/a//b", ""},
	{"a trailing slash", "/a/", "/a/"},
	{"dots in a name", "/a..b/.c", "/a..b/.c"},
	{"an encoded dot segment", "/a/%2e%2e/b", ""},
	{"nothing", "", ""},
}

func TestReturnPaths(t *testing.T) {
	for _, test := range returnPaths {
		t.Run(cmp.Or(test.name, test.payload), func(t *testing.T) {
			got, ok := ganbauth.LocalPath(test.payload)
			if !strings.HasPrefix(test.payload, "/bank/") { // the kit's own paths are refused later
				require.Equal(t, test.want, got)
				require.Equal(t, test.want != "", ok)
			}
			want := test.want
			if want == "" {
				want = "/home"
			}
			// Layer two: through a whole login, to the wire.
			a := newApp(t, setup{})
			b := a.browser()
			resp := b.get(b.callbackURL("/bank/login?return_to=" + url.QueryEscape(test.payload)))
			require.Equal(t, 303, resp.StatusCode)
			remembered := want
			if len(want) > 256 {
				remembered = "/home" // TestD2PathsThatAreRemembered
			}
			require.Equal(t, remembered, resp.Header.Get("Location"), "what the judge said, byte for byte")
			requireSameOrigin(t, resp.Header.Get("Location"))
			resp = b.post("/bank/logout?return_to=" + url.QueryEscape(test.payload))
			requireSameOrigin(t, resp.Header.Get("Location"))
			if !strings.HasPrefix(test.payload, "/bank/") {
				require.Equal(t, want, resp.Header.Get("Location"), "and on logout")
			}
		})
	}
	t.Run("twice", func(t *testing.T) {
		a := newApp(t, setup{})
		for _, q := range []string{"return_to=/ok&return_to=//evil.example", "return_to=//evil.example&return_to=/ok"} {
			b := a.browser()
			require.Equal(t, "/home", b.get(b.callbackURL("/bank/login?"+q)).Header.Get("Location"))
		}
	})
	t.Run("other names", func(t *testing.T) {
		a := newApp(t, setup{})
		for _, name := range []string{"return_to[]", "Return_To", "next", "rd", "redirect_uri", "url", "target_link_uri"} {
			b := a.browser()
			require.Equal(t, "/home", b.get(b.callbackURL("/bank/login?"+url.QueryEscape(name)+"=/x")).Header.Get("Location"))
		}
	})
}

// requireSameOrigin resolves a Location as a browser does (WHATWG): control characters
// and spaces at the ends go, TAB, LF and CR go everywhere, and a backslash is a slash.
func requireSameOrigin(t testing.TB, location string) {
	t.Helper()
	for i := range len(location) {
		if location[i] <= ' ' || location[i] > '~' {
			t.Fatalf("Location %q is not visible ASCII", location)
		}
	}
	s := strings.Trim(location, "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f ")
	s = strings.NewReplacer("\t", "", "\n", "", "\r", "", "\\", "/").Replace(s)
	if !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") {
		t.Fatalf("Location %q leaves the site", location)
	}
	// And what http.Redirect would make of it, for those who pass it on.
	w := httptest.NewRecorder()
	http.Redirect(w, httptest.NewRequest("GET", "/bank/callback", nil), location, http.StatusSeeOther)
	after := strings.NewReplacer("\\", "/").Replace(w.Header().Get("Location"))
	if !strings.HasPrefix(after, "/") || strings.HasPrefix(after, "//") {
		t.Fatalf("http.Redirect makes %q of %q", after, location)
	}
}

// I14: the path that RequireToken remembers comes from the request line, through a
// bare handler and through ServeMux, which cleans some paths by a redirect of its own.
func TestI14RequestLines(t *testing.T) {
	cleaned := map[string]string{
		"GET //evil.example/x":       "/evil.example/x",
		"GET http://evil.example//x": "/x",
		"GET /p/../..//evil.example": "/evil.example",
	}
	for line, want := range map[string]string{
		"GET //evil.example/x":          "/home",
		"GET http://evil.example/p?y=1": "/p?y=1",
		"GET http://evil.example//x":    "/home",
		"GET /%2fevil.example/x":        "/home",
		"GET /\\evil.example/x":         "/home",
		"GET /p/../..//evil.example":    "/home",
		"GET /p?next=//evil.example":    "/p?next=//evil.example",
		"GET /p/a%0d%0ab":               "/home",
	} {
		for name, wrap := range map[string]func(*app) http.Handler{
			"bare": func(a *app) http.Handler { return a.sessions.LoadAndSave(a.kit.RequireToken(a.next)) },
			"mux": func(a *app) http.Handler {
				mux := http.NewServeMux()
				mux.Handle("/", a.kit.RequireToken(a.next))
				return a.sessions.LoadAndSave(mux)
			},
		} {
			t.Run(name+" "+line, func(t *testing.T) {
				a := newApp(t, setup{})
				server := httptest.NewServer(wrap(a))
				defer server.Close()
				conn, err := net.Dial("tcp", server.Listener.Addr().String())
				require.NoError(t, err)
				defer conn.Close()
				fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: app.example\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\nConnection: close\r\n\r\n", line)
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				require.NoError(t, err)
				io.Copy(io.Discard, resp.Body)
				location := resp.Header.Get("Location")
				if clean := cleaned[line]; name == "mux" && clean != "" {
					require.Equal(t, clean, location)
					return
				}
				require.Equal(t, 303, resp.StatusCode)
				cookie := strings.SplitN(resp.Header.Get("Set-Cookie"), ";", 2)[0]
				final := a.browser().do("GET", a.bank.Approve(location), with(navigate, "Cookie", cookie))
				require.Equal(t, want, final.Header.Get("Location"))
				requireSameOrigin(t, final.Header.Get("Location"))
			})
		}
	}
}
