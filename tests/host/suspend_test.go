package host

import (
	"bytes"
	"context"
	"testing"

	"gitlab.com/gitlab-org/fleeting/fleeting"
	"gitlab.com/gitlab-org/fleeting/fleeting/connector"
	"gitlab.com/gitlab-org/fleeting/fleeting/provider"
)

// hello logs in and runs a command.
func hello(t *testing.T, instance fleeting.Instance) {
	t.Helper()
	info, err := instance.ConnectInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var said, complained bytes.Buffer
	err = connector.Run(t.Context(), info, connector.ConnectorOptions{
		RunOptions: connector.RunOptions{Command: "echo 'hello world'", Stdout: &said, Stderr: &complained},
	})
	if err != nil || said.String() != "hello world\n" {
		t.Fatalf("%s: %q, %q, %v", instance.ID(), said.String(), complained.String(), err)
	}
}

func TestSuspendAndResume(t *testing.T) {
	sim, _ := startGuests(t)
	host := sim.live(t, nil, password)
	if !host.HasCapability(provider.CapabilitySuspendResume) {
		t.Fatal("the capability is not reported")
	}
	instances := host.requestRunning(t, 2)
	one, other := instances[0], instances[1]
	hello(t, one)

	done, err := host.Suspend(t.Context(), []string{one.ID()})
	if err != nil || len(done) != 1 {
		t.Fatalf("suspended: %q, %v", done, err)
	}
	reaches(t, one, provider.StateSuspended)
	if other.State() != provider.StateRunning {
		t.Errorf("the other instance is %v", other.State())
	}
	// Again, although it is suspended.
	if done, err := host.Suspend(t.Context(), []string{one.ID()}); err != nil || len(done) != 1 {
		t.Errorf("suspended again: %q, %v", done, err)
	}
	if done, err := host.Resume(t.Context(), []string{one.ID()}); err != nil || len(done) != 1 {
		t.Fatalf("resumed: %q, %v", done, err)
	}
	reaches(t, one, provider.StateRunning)
	hello(t, one)

	// GitLab Runner's calls around a job.
	one.Suspend()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := host.ResumeAndWait(ctx, []string{one.ID()}); err != nil {
		t.Fatal(err)
	}
	if one.State() != provider.StateRunning {
		t.Errorf("it is %v after ResumeAndWait", one.State())
	}
	hello(t, one)

	// Delete a suspended and a running instance.
	if _, err := host.Suspend(t.Context(), []string{one.ID()}); err != nil {
		t.Fatal(err)
	}
	reaches(t, one, provider.StateSuspended)
	one.Delete()
	reaches(t, one, provider.StateDeleted)
	host.end()
	sim.waitForNoVapp(t)
}

func TestSuspendedInstancesSurviveARestart(t *testing.T) {
	sim, _ := startGuests(t)
	host := sim.live(t, map[string]any{"on_shutdown": "keep"}, password)
	one := host.requestRunning(t, 1)[0]
	if _, err := host.Suspend(t.Context(), []string{one.ID()}); err != nil {
		t.Fatal(err)
	}
	reaches(t, one, provider.StateSuspended)
	host.end()

	host = sim.live(t, nil, password)
	found := host.Instances()
	if len(found) != 1 || found[0].ID() != one.ID() || found[0].State() != provider.StateSuspended {
		t.Fatalf("found after the restart: %v", found)
	}
	if _, err := host.Resume(t.Context(), []string{one.ID()}); err != nil {
		t.Fatal(err)
	}
	reaches(t, found[0], provider.StateRunning)
	hello(t, found[0])
	host.end()
	sim.waitForNoVapp(t)
}

func TestSuspendIsNotAnnouncedWhenOff(t *testing.T) {
	sim := startSimulator(t, "")
	host := sim.live(t, map[string]any{"suspend_resume": false}, password)
	if host.HasCapability(provider.CapabilitySuspendResume) {
		t.Error("the capability is reported")
	}
	host.end()
}
