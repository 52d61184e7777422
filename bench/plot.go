package main

import (
	"image/color"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// plots writes the page's pictures into the folder.
func plots(r results, folder string) error {
	var overhead []bar
	for _, s := range []struct {
		name string
		of   float64
	}{
		{"memory", r.Default[1].Ratio}, {"memory, sealed", r.Default[2].Ratio}, {"IdleTimeout", r.Idle[1].Ratio},
		{"all cores", r.Parallel[1].Ratio}, {"Redis", r.Redis[1].Sample.Ratio}, {"PostgreSQL", r.Postgres[1].Sample.Ratio},
	} {
		overhead = append(overhead, bar{s.name, s.of})
	}
	if err := bars(filepath.Join(folder, "overhead.svg"), "A request with a live token, as a multiple of scs alone", overhead); err != nil {
		return err
	}
	var failed []bar
	for _, s := range r.AtOnce {
		failed = append(failed, bar{s.Name, float64(s.Failed)})
	}
	if err := bars(filepath.Join(folder, "storm.svg"), "1,000 requests meet an expired token: failed requests", failed); err != nil {
		return err
	}
	return lines(filepath.Join(folder, "memory.svg"), r.Memory)
}

type bar struct {
	name  string
	value float64
}

func bars(path, title string, values []bar) error {
	p := plot.New()
	p.Title.Text = title
	var heights plotter.Values
	var names []string
	for _, b := range values {
		heights = append(heights, b.value)
		names = append(names, strings.ReplaceAll(b.name, "*", ""))
	}
	chart, err := plotter.NewBarChart(heights, vg.Points(30))
	if err != nil {
		return err
	}
	chart.Color = color.RGBA{0x0b, 0x5c, 0xad, 0xff}
	p.Add(chart, plotter.NewGrid())
	p.NominalX(names...)
	p.Y.Min = 0
	return p.Save(8*vg.Inch, 3.5*vg.Inch, path)
}

func lines(path string, rows []memoryRow) error {
	p := plot.New()
	p.Title.Text = "Heap by live sessions"
	p.X.Label.Text, p.Y.Label.Text = "sessions", "MiB"
	p.Add(plotter.NewGrid())
	for name, each := range map[string]func(memoryRow) float64{
		"scs alone": func(r memoryRow) float64 { return r.Alone },
		"ganbauth":  func(r memoryRow) float64 { return r.Connected },
	} {
		points := plotter.XYs{{}}
		for _, r := range rows {
			points = append(points, plotter.XY{X: float64(r.Sessions), Y: each(r) * float64(r.Sessions) / (1 << 20)})
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		if name == "ganbauth" {
			line.Color = color.RGBA{0x0b, 0x5c, 0xad, 0xff}
		}
		p.Add(line, dots)
		p.Legend.Add(name, line)
	}
	p.Legend.Top, p.Legend.Left = true, true
	return p.Save(8*vg.Inch, 3.5*vg.Inch, path)
}
