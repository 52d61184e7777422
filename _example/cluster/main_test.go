package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth/internal/testenv"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "app" {
		main()
		return
	}
	os.Exit(m.Run())
}

var (
	answeredBy = regexp.MustCompile(`id="instance">(\d)<`)
	subject    = regexp.MustCompile(`id="subject">([^<]+)<`)
)

// One instance after the other is killed while the tokens end every few seconds, and the
// user always sees a page.
func TestTheUserNoticesNothing(t *testing.T) {
	testenv.Needs(t, "redis-server")
	ctx, cancel := context.WithCancel(t.Context())
	in, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-addr", "127.0.0.1:0", "-lifetime", "2s"}, out) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	lines := bufio.NewReader(in)
	origin := ""
	for up := 0; origin == "" || up < 2; {
		line, err := lines.ReadString('\n')
		require.NoError(t, err)
		if strings.HasPrefix(line, "Open ") {
			origin = strings.Fields(line)[1]
		} else {
			up++
		}
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()

	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	browser := &http.Client{Jar: jar}
	user := ""
	look := func() (instance string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, origin, nil)
		require.NoError(t, err)
		r.Header.Set("Accept", "text/html")
		resp, err := browser.Do(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode, "%s", body)
		m, s := answeredBy.FindSubmatch(body), subject.FindSubmatch(body)
		require.NotNil(t, m)
		if user == "" {
			user = string(s[1])
		}
		require.Equal(t, user, string(s[1]), "the same connection")
		return string(m[1])
	}
	for range 2 {
		victim := look()
		resp, err := browser.Post(origin+"kill/"+victim, "", nil)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		for began := time.Now(); time.Since(began) < 4*time.Second; {
			require.NotEqual(t, victim, look())
		}
		require.Eventually(t, func() bool { return look() == victim }, 20*time.Second, 20*time.Millisecond, "it is back")
	}
}
