from tahoe.cli import main

main()
