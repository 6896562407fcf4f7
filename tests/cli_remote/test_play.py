import time
from cli_remote.calls import Console
from cli_remote.kubelet import Kubelet
from operating.team import Team
from finetune_api.report import ProgressRecord
def test_play(team: Team, console: Console, kubelet: Kubelet) -> None:
    def sh(*args):
        done = console(*args)
        print("$ finetune", *args, "->", done.code)
        print(done.out[:3000]); print("ERR", done.err[:3000])
    sh("submit", console.job())
    team.until_run("sample-1", pods=1)
    kubelet.run("sample-1-worker-0")
    with console.start("watch","sample") as w, console.start("logs","sample","-f") as l:
        w.until("PodsReady")
        for i in range(1,4):
            kubelet.say("sample-1-worker-0", "hello", ProgressRecord(time=0,step=i,total_steps=3,epoch=1,loss=1.5/i,learning_rate=1e-4,grad_norm=1,tokens_per_second=5,eta_seconds=3).line())
            time.sleep(1.2)
        sh("logs","sample"); sh("logs","sample","--tail","2","--raw"); sh("logs", "sample","--node","4"); sh("logs","sample","--run","7")
        w.until("step 3")
        team.end("sample-1-worker-0")
        kubelet.end_log("sample-1-worker-0")
        print(w.ended(), w.lines)
        print(l.ended(), l.lines)
    (kubelet.claims/"models/out/result").mkdir(parents=True)
    (kubelet.claims/"models/out/result/COMPLETE").write_text("")
    (kubelet.claims/"models/out/result/a.bin").write_bytes(b"x"*5000000)
    with console.start("fetch","sample") as f:
        deadline=time.time()+20
        while time.time()<deadline:
            pods=[p["metadata"]["name"] for p in team.api.items(team.pods) if "transfer" in p["metadata"]["name"]]
            if pods: break
        kubelet.run(pods[0])
        print(f.ended(), f.lines)
    print(list((console.folder/"sample-result").rglob("*")))
    print([p["metadata"]["name"] for p in team.api.items(team.pods)])
    assert 0
