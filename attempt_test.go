package ganbauth_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
)

// returnPaths are the payloads of section E: "" as want means that the login must end at the default page.
var returnPaths = []struct{ id, payload, want string }{
	{"E-001", "//evil.example", ""},
	{"E-002", "///evil.example", ""},
	{"E-004 D-18", "/\\evil.example", ""},
	{"E-008 V7", "\\evil.example", ""},
	{"E-009 D-18", "/\t/evil.example", ""},
	{"E-013", "\t//evil.example", ""},
	{"E-021", "/%09/evil.example", ""},
	{"E-025", "/%2fevil.example", ""},
	{"E-028", "/%5cevil.example", ""},
	{"E-031", "/.//evil.example", ""},
	{"E-034 D-20 V7", "/./\\evil.example", ""},
	{"E-041", "/", "/"},
	{"E-043", "http:evil.example", ""},
	{"E-046", "https:evil.example", ""},
	{"E-050 D-17", "http://evil.example", ""},
	{"E-053", "javascript:alert(1)", ""},
	{"E-057", "/javascript:alert(1)", "/javascript:alert(1)"},
	{"E-062 D-21", "//app.example@evil.example", ""},
	{"E-067 D-18", "https://app.example.evil.example", ""},
	{"E-074", "//evil%E3%80%82example", ""},
	{"E-076", "/／evil.example", "/%EF%BC%8Fevil.example"},
	{"E-089", "@evil.example", ""},
	{"E-092", "/@evil.example", "/@evil.example"},
	{"E-097", "/a\\b", ""},
	{"E-099", "/a/../../b", ""},
	{"E-101 D-24", "/%zz", ""},
	{"E-103", "/é", "/%C3%A9"},
	{"E-104", "/日本語?q=値", "/%E6%97%A5%E6%9C%AC%E8%AA%9E?q=%E5%80%A4"},
	{"E-105", "/ok?next=//evil.example", "/ok?next=//evil.example"},
	{"E-107", "/ok#frag", "/ok"},
	{"E-L10", "/ok#access_token=x", "/ok"},
	{"E-109", "?q=1", ""},
	{"E-L1", "/" + strings.Repeat("a", 2047), "/" + strings.Repeat("a", 2047)},
	{"E-L1", "/" + strings.Repeat("a", 2048), ""},
	{"E-L1", "/" + strings.Repeat("a", 8191), ""},
	{"E-L1 encoded too long", "/" + strings.Repeat("日", 300), ""},
	{"E-L4", "%2f%2fevil.example", ""},
	{"E-L4 the slash itself encoded", "%2f", ""},
	{"E-L4 the slash itself encoded", "%2fevil.example", ""},
	{"E-L4", "/%252f%252fevil.example", "/%252f%252fevil.example"},
	{"E-L5", "/bank/login", ""},
	{"E-L5", "/bank/callback?code=x&state=y", ""},
	{"E-L5", "/bank/./login", ""},
	{"D-24", "http://[::1", ""},
	{"D-24", ":", ""},
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
		t.Run(test.id, func(t *testing.T) {
			got, ok := ganbauth.LocalPath(test.payload)
			if test.want != "" || !ok {
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
			if len(test.payload) > 8000 {
				return // the server answers 414 or the like
			}
			resp := b.get(b.callbackURL("/bank/login?return_to=" + url.QueryEscape(test.payload)))
			require.Equal(t, 303, resp.StatusCode)
			require.Equal(t, want, resp.Header.Get("Location"), "E-L8: what the judge said, byte for byte")
			requireSameOrigin(t, resp.Header.Get("Location"))
			resp = b.post("/bank/logout?return_to=" + url.QueryEscape(test.payload))
			requireSameOrigin(t, resp.Header.Get("Location"))
			if !strings.HasPrefix(test.payload, "/bank/") {
				require.Equal(t, want, resp.Header.Get("Location"), "D-22 I-08: and on logout")
			}
		})
	}
	t.Run("E-L2 twice", func(t *testing.T) {
		a := newApp(t, setup{})
		for _, q := range []string{"return_to=/ok&return_to=//evil.example", "return_to=//evil.example&return_to=/ok"} {
			b := a.browser()
			require.Equal(t, "/home", b.get(b.callbackURL("/bank/login?"+q)).Header.Get("Location"))
		}
	})
	t.Run("E-L3 other names", func(t *testing.T) {
		a := newApp(t, setup{})
		for _, name := range []string{"return_to[]", "Return_To", "next", "rd", "redirect_uri", "url", "target_link_uri"} {
			b := a.browser()
			require.Equal(t, "/home", b.get(b.callbackURL("/bank/login?"+url.QueryEscape(name)+"=/x")).Header.Get("Location"))
		}
	})
	t.Run("ReturnParam", func(t *testing.T) {
		a := newApp(t, setup{options: ganbauth.Options{ReturnParam: "next"}})
		b := a.browser()
		require.Equal(t, "/x", b.get(b.callbackURL("/bank/login?next=/x&return_to=/y")).Header.Get("Location"))
	})
}

// requireSameOrigin resolves a Location as a browser does (WHATWG): control characters and spaces at the ends go, TAB,
// LF and CR go everywhere, and a backslash is a slash.
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

// E3 V8 D-19: the path that RequireToken remembers comes from the request line, through a bare handler and through
// ServeMux.
func TestRequestLines(t *testing.T) {
	for line, want := range map[string]string{
		"GET //evil.example/x":          "/home", // E-R1
		"GET http://evil.example/p?y=1": "/home", // E-R3
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
				if name == "mux" && !strings.HasPrefix(location, a.bank.URL) {
					return // ServeMux has cleaned the path by a redirect of its own
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
